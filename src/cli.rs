//! The command line, declared. What the words mean is decided in [`crate::config`] and
//! [`crate::command`]. The comments of fields are the help texts.

mod help;
mod run;
mod schedule;

use std::num::NonZeroU32;
use std::path::PathBuf;
use std::time::Duration;

use clap::builder::NonEmptyStringValueParser;
use clap::{Args, Parser, Subcommand};
use rustix::process::Pid;
use serde::{Deserialize, Serialize};

use crate::lease::OnLost;
use crate::lock::staleness::Orphans;
use crate::logging::LogArgs;
use crate::store::address::Unread;
use crate::values;
pub use run::{CommandArgs, FlockArgs, ForgetArgs, OnceArgs, RuleArgs, RunArgs};
pub use schedule::{
    CatalogArgs, NextArgs, PauseArgs, RunTaskArgs, ScheduleCommand, ScheduleStatusArgs, TasksArgs,
    TickArgs,
};

#[derive(Parser)]
#[command(
    name = "serializer",
    version,
    about = "A mutex for data pipelines: makes the parts that must not overlap run one at a time"
)]
#[command(after_help = help::AFTER_HELP, max_term_width = 110, subcommand_required = true)]
#[command(arg_required_else_help = true)]
pub struct Cli {
    #[command(flatten)]
    pub log: LogArgs,
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Subcommand)]
pub enum Command {
    /// Run a command while holding the lock
    #[command(after_help = help::RUN_HELP)]
    Run(RunArgs),
    /// Acquire the lock, waiting as long as another process holds it
    #[command(after_help = help::LOCK_HELP)]
    Lock(LockArgs),
    /// Release the lock
    #[command(after_help = help::UNLOCK_HELP)]
    Unlock(UnlockArgs),
    /// Wait until the lock is free, without acquiring it
    #[command(after_help = help::WAIT_HELP)]
    Wait(WaitArgs),
    /// Break the lock of one certain holder
    #[command(after_help = help::BREAK_HELP)]
    Break(BreakArgs),
    /// Run a command unless its key is done: once a day, or once for all
    #[command(after_help = help::ONCE_HELP)]
    Once(OnceArgs),
    /// Run tasks on a schedule, each slot once, on one of several hosts
    Schedule {
        /// What to do
        #[command(subcommand)]
        command: ScheduleCommand,
    },
    /// Forget that keys are done, so that they run again
    Forget(ForgetArgs),
    /// Run a command under a lock, with the command line of flock(1)
    #[command(after_help = help::FLOCK_HELP)]
    Flock(FlockArgs),
    /// Show the holders of the lock, since when, and whether they still run
    #[command(after_help = help::STATUS_HELP)]
    Status(StatusArgs),
    /// Make sure that locks can be kept in the directory, creating it if need be
    Initialize(InitializeArgs),
    /// List the commands (for Meltano)
    Describe {
        /// How to write it
        #[arg(long, value_parser = ["text", "json", "yaml"], default_value = "text")]
        format: String,
    },
    /// Print a completion script for a shell
    Completions {
        /// The shell
        shell: clap_complete::Shell,
    },
    /// Print the manual page, of this program or of one of its commands
    Man {
        /// The command; without it, the whole program
        command: Option<String>,
    },
}

#[derive(Args)]
pub struct LockFileArgs {
    /// Name of the lock file; an absolute path overrides the directory [env: SERIALIZER_FILE_NAME]
    /// [default: serializer.lck]
    #[arg(long, alias = "filename", value_name = "NAME")]
    pub file_name: Option<PathBuf>,
    #[command(flatten)]
    pub place: PlaceArgs,
}

#[derive(Args)]
pub struct PlaceArgs {
    /// Directory of the lock file, or of keys and tasks [env: SERIALIZER_DIR] [default: /tmp; for
    /// keys and tasks see `once --help`]
    #[arg(long, alias = "filedir", value_name = "DIR")]
    pub dir: Option<PathBuf>,
    /// Store that many hosts share, instead of a directory, such as postgres://user@host/database
    /// [env: SERIALIZER_STORE]
    #[arg(long, value_name = "URL", conflicts_with = "dir")]
    pub store: Option<Unread>,
    /// How long a lock in a store outlives a host that does not renew it [env:
    /// SERIALIZER_LEASE_SECONDS] [default: 30]
    #[arg(long, value_name = "SECONDS", value_parser = values::parse_lease_seconds)]
    #[arg(allow_negative_numbers = true)]
    pub lease_seconds: Option<Duration>,
}

#[derive(Args)]
pub struct OwnerArgs {
    /// Process that owns the lock [env: SERIALIZER_OWNER_PID] [default: the parent process]
    #[arg(long, value_name = "PID", value_parser = values::parse_owner_pid)]
    #[arg(allow_negative_numbers = true)]
    pub owner_pid: Option<Pid>,
    /// `wait` for processes that outlive the Meltano run that held the lock, or `ignore` them [env:
    /// SERIALIZER_ORPHANS] [default: wait]
    #[arg(long, value_name = "wait|ignore", hide_possible_values = true)]
    pub orphans: Option<Orphans>,
}

#[derive(Args)]
pub struct WaitingArgs {
    /// How often to try; 0 = for ever [env: SERIALIZER_MAX_ATTEMPTS] [default: 0]
    #[arg(long, alias = "maxattempts", value_name = "N", value_parser = values::parse_max_attempts)]
    #[arg(allow_negative_numbers = true)]
    pub max_attempts: Option<u32>,
    /// Seconds from one try to the next; fractions are allowed [env: SERIALIZER_SLEEP_SECONDS]
    /// [default: 1]
    #[arg(long, alias = "sleepseconds", value_name = "SECONDS")]
    #[arg(value_parser = values::parse_sleep_seconds, allow_negative_numbers = true)]
    pub sleep_seconds: Option<Duration>,
    /// How long to wait at most, in seconds or such as 2m or 1h30m, in any number of tries
    #[arg(long, short = 'w', visible_alias = "wait", value_name = "DURATION")]
    #[arg(value_parser = values::parse_duration)]
    #[arg(allow_negative_numbers = true, conflicts_with = "max_attempts")]
    pub timeout: Option<Duration>,
    /// Warn once after waiting for so long, such as 10m
    #[arg(long, value_name = "DURATION", value_parser = values::parse_duration)]
    pub warn_after: Option<Duration>,
    /// Try once, and do not wait
    #[arg(long, short = 'n', conflicts_with_all = ["max_attempts", "timeout"])]
    pub no_wait: bool,
    /// Exit code if the lock is still held when waiting ends
    #[arg(long, short = 'E', value_name = "CODE", default_value_t = 75)]
    pub conflict_exit_code: u8,
}

#[derive(Args)]
pub struct RequestArgs {
    /// Allow up to N holders at once; all users of the lock should say the same number [env:
    /// SERIALIZER_SLOTS] [default: 1]
    #[arg(long, value_name = "N", value_parser = values::parse_slots)]
    #[arg(allow_negative_numbers = true)]
    pub slots: Option<NonZeroU32>,
    /// Hold the lock together with others that share it; it excludes only those that do not
    #[arg(long, short = 's', conflicts_with = "slots")]
    pub shared: bool,
    /// Keep the lock held for so long, such as 30s, even if it is released earlier
    #[arg(long, value_name = "DURATION", value_parser = values::parse_duration)]
    #[arg(allow_negative_numbers = true)]
    pub hold_at_least: Option<Duration>,
    /// When a lock of a store is lost while it is held: `terminate` what holds it, or `warn` [env:
    /// SERIALIZER_ON_LOST]
    #[arg(long, value_name = "terminate|warn", hide_possible_values = true)]
    pub on_lost: Option<OnLost>,
}

#[derive(Args)]
pub struct LockArgs {
    #[command(flatten)]
    pub file: LockFileArgs,
    #[command(flatten)]
    pub request: RequestArgs,
    #[command(flatten)]
    pub waiting: WaitingArgs,
    #[command(flatten)]
    pub owner: OwnerArgs,
    /// Print the lock's fencing token: a number that is larger than that of every former holder
    #[arg(long)]
    pub print_token: bool,
    /// Begin a run of this key; exit with 79 if the key is done
    #[arg(long, value_name = "KEY")]
    #[arg(conflicts_with_all = ["file_name", "slots", "shared", "hold_at_least"])]
    pub once: Option<String>,
    /// Let another process end the run, by `unlock --once KEY --token TOKEN`, before the lease
    /// expires; needs a store
    #[arg(long, requires = "once", conflicts_with = "on_lost")]
    pub detached: bool,
    #[command(flatten)]
    pub rule: RuleArgs,
}

#[derive(Args)]
pub struct UnlockArgs {
    #[command(flatten)]
    pub file: LockFileArgs,
    /// Break the lock, whatever process holds it
    #[arg(long)]
    pub force: bool,
    #[command(flatten)]
    pub owner: OwnerArgs,
    /// End the run of this key: the key is done
    #[arg(long, value_name = "KEY", conflicts_with_all = ["file_name", "force"])]
    pub once: Option<String>,
    /// The run failed: the key is not done
    #[arg(long, requires = "once")]
    pub failed: bool,
    /// How the run ended, for `status`
    #[arg(long, value_name = "TEXT", requires = "once")]
    pub note: Option<String>,
    /// Token of the run, as `lock --once --print-token` printed it
    #[arg(long, value_name = "TOKEN", requires = "once", conflicts_with = "owner_pid")]
    #[arg(value_parser = NonEmptyStringValueParser::new())]
    pub token: Option<String>,
}

#[derive(Args)]
pub struct WaitArgs {
    /// Lock files to wait for, one after the other, instead of the one that is set up
    #[arg(value_name = "NAME", conflicts_with = "file_name")]
    pub names: Vec<PathBuf>,
    /// The names are keys: wait until all are done; exit with 1 if one is given up
    #[arg(long, requires = "names")]
    pub once: bool,
    #[command(flatten)]
    pub file: LockFileArgs,
    #[command(flatten)]
    pub waiting: WaitingArgs,
    #[arg(long, hide = true)]
    pub orphans: Option<Orphans>,
}

#[derive(Args)]
pub struct BreakArgs {
    /// Lock file, instead of the one that is set up
    #[arg(value_name = "NAME", conflicts_with = "file_name")]
    pub name: Option<PathBuf>,
    /// Token of the holder, as `serializer status --json` shows it
    #[arg(long, value_name = "TOKEN")]
    pub token: String,
    #[command(flatten)]
    pub file: LockFileArgs,
}

#[derive(Args)]
pub struct StatusArgs {
    /// Lock files to look at, instead of the one that is set up
    #[arg(value_name = "NAME", conflicts_with_all = ["file_name", "all"])]
    pub names: Vec<PathBuf>,
    /// Show keys instead: running, done, failed, interrupted, given up or expired; without a NAME,
    /// all keys
    #[arg(long, conflicts_with = "file_name")]
    pub once: bool,
    /// Look at every lock in the directory (files named *.lck or *.lock), or in the store
    #[arg(long)]
    pub all: bool,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
    /// Print metrics for Prometheus, such as for the textfile collector
    #[arg(long, conflicts_with = "json")]
    pub metrics: bool,
    /// Look every second, and show it in place, until Ctrl-C
    #[arg(long, conflicts_with_all = ["json", "metrics"])]
    pub watch: bool,
    #[command(flatten)]
    pub file: LockFileArgs,
    #[arg(long, hide = true)]
    pub orphans: Option<Orphans>,
}

#[derive(Args)]
pub struct InitializeArgs {
    #[command(flatten)]
    pub file: LockFileArgs,
    /// Print the SQL that makes the store's table, for an administrator, and do nothing
    #[arg(long)]
    pub print_sql: bool,
    /// Accepted because Meltano extensions have it; there is nothing to overwrite
    #[arg(long, hide = true)]
    pub force: bool,
}
