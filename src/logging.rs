//! Messages: single lines on stderr, plain for people or as JSON in Meltano's form.

use std::fmt;
use std::io::IsTerminal;
use std::path::{self, PathBuf};
use std::sync::OnceLock;

use clap::{Args, ColorChoice};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::json;
use tracing::level_filters::LevelFilter;
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::filter::Targets;
use tracing_subscriber::fmt::FmtContext;
use tracing_subscriber::fmt::format::{FormatEvent, FormatFields, Writer};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::registry::LookupSpan;

use crate::error::Error;
use crate::exit_code;
use crate::sys::local_time::local_time;

/// The flags by which this process reports.
static ARGS: OnceLock<LogArgs> = OnceLock::new();

pub fn shows_progress() -> bool {
    ARGS.get().is_none_or(|args| !args.no_progress)
}

/// Whether to colour what is printed: <https://no-color.org>, <https://bixense.com/clicolors>.
pub fn is_coloured() -> bool {
    let is_terminal =
        || std::io::stdout().is_terminal() && variable("TERM").is_some_and(|term| term != "dumb");
    match ARGS.get().and_then(|args| args.color).unwrap_or(ColorChoice::Auto) {
        ColorChoice::Always => true,
        ColorChoice::Never => false,
        ColorChoice::Auto if variable("NO_COLOR").is_some() => false,
        ColorChoice::Auto if variable("CLICOLOR_FORCE").is_some_and(|value| value != "0") => true,
        ColorChoice::Auto => variable("CLICOLOR").as_deref() != Some("0") && is_terminal(),
    }
}

/// A hint that names commands as Meltano runs them: its plugin need not be on the PATH.
pub fn hint(hint: &str) -> String {
    let plugin = include_str!("../dbtmutex.yml").lines();
    // Meltano answers `--help` itself.
    let plugin = plugin.filter(|_| is_in_meltano() && !hint.contains("--help"));
    let commands = plugin.filter_map(|line| line.strip_prefix("    args: "));
    commands.fold(hint.to_owned(), |hint, command| {
        let ours = format!("`serializer {command}");
        hint.replace(&ours, &format!("`meltano invoke dbtmutex:{command}"))
    })
}

/// Whether Meltano has started this process, or one above it.
pub fn is_in_meltano() -> bool {
    variable("MELTANO_PROJECT_ROOT").is_some()
}

pub fn start(args: &LogArgs) {
    let _ = ARGS.set(args.clone());
    let named = args.quiet.then(|| "warning".to_owned()).or_else(|| args.log_level.clone());
    let level = parse_level(&named.or_else(|| variable("LOG_LEVEL")).unwrap_or_default());
    let format = LogArgs {
        meltano_log_json: args.meltano_log_json || is_on("MELTANO_LOG_JSON"),
        log_timestamps: args.log_timestamps || is_on("LOG_TIMESTAMPS"),
        log_levels: args.log_levels || is_on("LOG_LEVELS"),
        ..LogArgs::default()
    };
    let subscriber = tracing_subscriber::fmt()
        .with_max_level(level)
        .with_writer(std::io::stderr)
        .with_ansi(false)
        // If stderr does not work, reporting that there would panic; the lock matters more.
        .log_internal_errors(false)
        .event_format(format)
        .finish()
        // The reports of libraries are for their developers, and may hold secrets.
        .with(Targets::new().with_target(env!("CARGO_CRATE_NAME"), level));
    // Fails only if it was started before; then that one reports.
    let _ = tracing::subscriber::set_global_default(subscriber);
}

/// The flags for a process of this one that works in another directory.
pub fn args() -> LogArgs {
    let mut args = ARGS.get().cloned().unwrap_or_default();
    args.events = args.events.map(|file| path::absolute(&file).unwrap_or(file));
    args
}

/// Reports why a command failed, as the last line on stderr.
pub fn report(error: &Error) {
    let message = error.to_string();
    match error.hint.as_deref().map(hint) {
        // In cron, for example, that is a success, and a lower log level must hide it.
        _ if [exit_code::DONE, exit_code::ALREADY_DONE].contains(&error.code) => {
            tracing::info!("{message}")
        }
        None => tracing::error!("{message}"),
        // Programs and logs show the last line only, so that it must hold everything.
        Some(hint) if !std::io::stderr().is_terminal() => {
            tracing::error!("{message} (hint: {hint})")
        }
        Some(hint) => tracing::error!("{message}\n  hint: {hint}"),
    }
}

fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}

// The words that the Python plugin takes for yes.
fn is_on(name: &str) -> bool {
    variable(name).is_some_and(|value| {
        ["1", "true", "t", "yes", "y", "on"].contains(&value.to_ascii_lowercase().as_str())
    })
}

/// `LOG_LEVEL` is not ours alone, so an unknown level is not an error.
fn parse_level(level: &str) -> LevelFilter {
    match level.to_ascii_lowercase().as_str() {
        "trace" | "notset" => LevelFilter::TRACE,
        "debug" => LevelFilter::DEBUG,
        "warning" | "warn" => LevelFilter::WARN,
        "error" | "critical" | "fatal" => LevelFilter::ERROR,
        _ => LevelFilter::INFO,
    }
}

impl<S, N> FormatEvent<S, N> for LogArgs
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, N>,
        mut out: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let mut message = String::new();
        context.format_fields(Writer::new(&mut message), event)?;
        let level = match *event.metadata().level() {
            Level::TRACE | Level::DEBUG => "debug",
            Level::INFO => "info",
            Level::WARN => "warning",
            Level::ERROR => "error",
        };
        let now = Timestamp::now();
        if self.meltano_log_json {
            let line = json!({ "timestamp": now.to_string(), "level": level, "event": message });
            return writeln!(out, "{line}");
        }
        if self.log_timestamps {
            write!(out, "{} ", local_time(now))?;
        }
        // Meltano begins each line with the plugin's name itself.
        out.write_str(if is_in_meltano() { "" } else { "serializer: " })?;
        if self.log_levels || level == "warning" {
            write!(out, "{level}: ")?;
        }
        writeln!(out, "{message}")
    }
}

#[derive(Args, Clone, Default, Serialize, Deserialize)]
#[command(next_help_heading = "Messages")]
pub struct LogArgs {
    /// Show warnings and errors only
    #[arg(long, short, global = true, conflicts_with = "log_level")]
    pub quiet: bool,
    /// Least important messages to show: debug, info, warning or error [env: LOG_LEVEL]
    #[arg(long, global = true, value_name = "LEVEL", ignore_case = true)]
    #[arg(value_parser = ["debug", "info", "warning", "warn", "error", "critical"])]
    #[arg(hide_possible_values = true, hide_short_help = true)]
    pub log_level: Option<String>,
    /// Begin messages with the time [env: LOG_TIMESTAMPS]
    #[arg(long, global = true, hide_short_help = true)]
    pub log_timestamps: bool,
    /// Begin messages with their level [env: LOG_LEVELS]
    #[arg(long, global = true, hide_short_help = true)]
    pub log_levels: bool,
    /// Write messages as JSON, a line each [env: MELTANO_LOG_JSON]
    #[arg(long, global = true, hide_short_help = true)]
    pub meltano_log_json: bool,
    /// While waiting, print lines, as in a pipe, instead of updating one in place
    #[arg(long, global = true, hide_short_help = true)]
    pub no_progress: bool,
    /// Colour tables: auto, always or never [env: NO_COLOR, CLICOLOR]
    #[arg(long, global = true, value_name = "WHEN", hide_possible_values = true)]
    #[arg(hide_short_help = true)]
    #[serde(skip)]
    pub color: Option<ColorChoice>,
    /// Append a line of JSON to FILE for each lock that is acquired, released or lost [env:
    /// SERIALIZER_EVENTS]
    #[arg(long, global = true, value_name = "FILE", hide_short_help = true)]
    pub events: Option<PathBuf>,
}
