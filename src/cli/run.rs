//! The command lines of `run` and `flock`, which run a command.

use std::ffi::OsString;
use std::num::NonZeroU32;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, ValueHint};

use super::{LockFileArgs, PlaceArgs, RequestArgs, WaitingArgs};
use crate::lease::OnLost;
use crate::lock::staleness::Orphans;
use crate::record::period::Period;
use crate::record::run::Interrupted;
use crate::values;

#[derive(Args)]
pub struct RunArgs {
    #[command(flatten)]
    pub file: LockFileArgs,
    /// Name the lock after the command: only equal command lines exclude each other
    #[arg(long, conflicts_with = "file_name", help_heading = "Lock")]
    pub name_from_command: bool,
    #[command(flatten)]
    pub request: RequestArgs,
    /// Hold the lock alone (the default)
    #[arg(short = 'x', long, conflicts_with_all = ["shared", "slots"], hide_short_help = true)]
    pub exclusive: bool,
    #[command(flatten)]
    pub waiting: WaitingArgs,
    /// If another process holds the lock: wait for its command, and skip this one if that
    /// succeeded; otherwise run this one
    #[arg(long, conflicts_with_all = ["shared", "slots"], help_heading = "Waiting")]
    pub wait_and_skip: bool,
    /// Exit code when the command was skipped
    #[arg(long, value_name = "CODE", default_value_t = 0, requires = "wait_and_skip")]
    #[arg(hide_short_help = true)]
    pub skipped_exit_code: u8,
    #[command(flatten)]
    pub command: CommandArgs,
}

#[derive(Args)]
pub struct OnceArgs {
    /// Key of the run: a name, a date, or both
    #[arg(id = "once", value_name = "KEY")]
    pub key: String,
    #[command(flatten)]
    pub rule: RuleArgs,
    /// Exit code when the key is done
    #[arg(long, value_name = "CODE", default_value_t = 0)]
    pub skipped_exit_code: u8,
    /// If the key's lock in a store is lost during the run: `terminate` the command, or `warn`
    /// [env: SERIALIZER_ON_LOST]
    #[arg(long, value_name = "terminate|warn", hide_possible_values = true)]
    pub on_lost: Option<OnLost>,
    /// Why the key runs: shown to waiters and by `status` [env: SERIALIZER_REASON]
    #[arg(long, value_name = "TEXT")]
    pub reason: Option<String>,
    #[command(flatten)]
    pub waiting: WaitingArgs,
    #[command(flatten)]
    pub place: PlaceArgs,
    #[command(flatten)]
    pub command: CommandArgs,
}

#[derive(Args)]
pub struct ForgetArgs {
    /// Keys to forget
    #[arg(value_name = "KEY", conflicts_with = "done_before")]
    #[arg(required_unless_present = "done_before")]
    pub keys: Vec<String>,
    /// Forget all keys that were done at least this long ago, such as 90d
    #[arg(long, value_name = "DURATION", value_parser = values::parse_duration)]
    pub done_before: Option<Duration>,
    /// Show the keys, and change nothing
    #[arg(long)]
    pub dry_run: bool,
    /// Forget a running key too: its run counts as lost
    #[arg(long, conflicts_with = "done_before")]
    pub force: bool,
    #[command(flatten)]
    pub place: PlaceArgs,
}

/// How often a key runs.
#[derive(Args)]
#[command(next_help_heading = "Keys")]
pub struct RuleArgs {
    /// Run once in each calendar hour, day, week or month, in the time zone of TZ
    #[arg(long, value_name = "PERIOD", requires = "once", conflicts_with = "valid_for")]
    pub per: Option<Period>,
    /// Run again if the last success is older, such as 20m
    #[arg(long, value_name = "DURATION", requires = "once", value_parser = values::parse_duration)]
    pub valid_for: Option<Duration>,
    /// Give the key up after N runs without success [default: never]
    #[arg(long, value_name = "N", requires = "once", hide_short_help = true)]
    #[arg(allow_negative_numbers = true, value_parser = values::parse_positive::<{ u32::MAX }>)]
    pub tries: Option<NonZeroU32>,
    /// After an interrupted run (its process or host has died): `rerun`, or `stop` and give the key
    /// up [default: rerun]
    #[arg(long, value_name = "rerun|stop", requires = "once", hide_possible_values = true)]
    #[arg(hide_short_help = true)]
    pub interrupted: Option<Interrupted>,
}

/// The command, and what belongs to it.
#[derive(Args)]
pub struct CommandArgs {
    /// Hold the lock until all processes that the command started have ended, even in the
    /// background
    #[arg(long)]
    pub until_children_exit: bool,
    /// `wait` for processes that outlive the Meltano run that held the lock, or `ignore` them [env:
    /// SERIALIZER_ORPHANS] [default: wait]
    #[arg(long, value_name = "wait|ignore", hide_possible_values = true, hide_short_help = true)]
    pub orphans: Option<Orphans>,
    /// Accepted because flock(1) has it: the command never inherits the lock
    #[arg(short = 'o', long, hide = true)]
    pub close: bool,
    /// Say when the lock was acquired and released
    #[arg(short, long)]
    pub verbose: bool,
    /// Run a script by `$SHELL`, or by /bin/sh
    #[arg(short = 'c', value_name = "SCRIPT", conflicts_with = "command")]
    pub script: Option<OsString>,
    /// The command and its arguments; options stand before it
    #[arg(value_name = "CMD", trailing_var_arg = true, required_unless_present = "script")]
    #[arg(value_hint = ValueHint::CommandWithArguments)]
    pub command: Vec<OsString>,
}

#[derive(Args)]
pub struct FlockArgs {
    /// Share the lock with others that share it
    #[arg(short, long, overrides_with = "exclusive")]
    pub shared: bool,
    /// Hold the lock alone (the default)
    #[arg(short = 'x', visible_short_alias = 'e', long)]
    pub exclusive: bool,
    /// Fail rather than wait
    #[arg(short, long, visible_aliases = ["nb", "nonblocking"])]
    pub nonblock: bool,
    /// Fail after so many seconds
    #[arg(short = 'w', long, visible_alias = "wait", value_parser = values::parse_sleep_seconds)]
    #[arg(value_name = "SECONDS", allow_negative_numbers = true)]
    pub timeout: Option<Duration>,
    /// Exit code when the lock was held
    #[arg(short = 'E', long, value_name = "CODE", default_value_t = 1)]
    pub conflict_exit_code: u8,
    /// Lock FILE independently of those that lock it without --fcntl
    #[arg(long)]
    pub fcntl: bool,
    /// Accepted: the command never inherits the lock
    #[arg(short = 'o', long)]
    pub close: bool,
    /// Accepted: the lock is held by the command's own process
    #[arg(short = 'F', long, conflicts_with = "close")]
    pub no_fork: bool,
    /// Say when the lock was acquired and released
    #[arg(short, long)]
    pub verbose: bool,
    /// Not possible: a lock belongs to a process
    #[arg(short, long, hide = true)]
    pub unlock: bool,
    /// Lock file
    #[arg(value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub file: PathBuf,
    /// Command and its arguments, or `-c SCRIPT`
    #[arg(value_name = "CMD", trailing_var_arg = true, allow_hyphen_values = true)]
    #[arg(value_hint = ValueHint::CommandWithArguments)]
    pub command: Vec<OsString>,
}
