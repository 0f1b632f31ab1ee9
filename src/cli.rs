//! The command line, declared. What the words mean is decided in [`crate::config`] and [`crate::command`].

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use clap::builder::{PossibleValuesParser, TypedValueParser};
use clap::{ArgAction, Args, Parser, Subcommand, ValueEnum};
use rustix::process::Pid;

use crate::config;
use crate::verdict::Orphans;

const AFTER_HELP: &str = "\
Examples:
  In a shell script (the script owns the lock):
      serializer lock && dbt run; serializer unlock
  In a Meltano pipeline, as a utility plugin named `dbtmutex`:
      meltano run tap-x target-y dbt:deps dbtmutex:lock dbt:run dbtmutex:unlock
  Who holds it?
      serializer status

Environment variables (a flag beats its variable, an empty one counts as unset):
  SERIALIZER_FILE_NAME      name of the lock file [serializer.lck]
  SERIALIZER_DIR            directory of lock files [/tmp]; a relative one starts
                            at MELTANO_PROJECT_ROOT if that is set
  SERIALIZER_MAX_ATTEMPTS   how often `lock` tries [0: for ever]
  SERIALIZER_SLEEP_SECONDS  from one try to the next, in seconds [1]
  SERIALIZER_OWNER_PID      process that owns the lock [the parent process]
  SERIALIZER_ORPHANS        `wait` for what outlives a Meltano run, or `ignore`
  LOG_LEVEL                 debug, info, warning or error [info]
  LOG_TIMESTAMPS            1: messages begin with the time
  LOG_LEVELS                1: messages begin with their level
  MELTANO_LOG_JSON          1: messages are JSON

Exit codes:
  0   done
  1   failed
  2   wrong usage or setting
  75  busy: held by another process until all attempts were used up
  77  refused: the lock is held by somebody else

`serializer COMMAND --help` tells more.";

const RUN_HELP: &str = "\
Examples:
  serializer run dbt run --select sales
  serializer run --timeout 10m -- dbt run       # ten minutes at most, then exit code 75
  serializer run -c 'dbt deps && dbt run'

The lock belongs to the command, and is released when that ends, however it does. Signals reach the command. The exit code is the \
command's, 128 + n if signal n ended it, 127 if it is not found and 126 if it cannot be run; 76 if it succeeded, but the lock was \
lost meanwhile.";

const LOCK_HELP: &str = "\
Examples:
  serializer lock && dbt run; serializer unlock
  serializer lock --timeout 10m || exit     # ten minutes at most, then exit code 75
  serializer lock --no-wait && { dbt run; serializer unlock; }
  serializer lock --dir ~/locks --file-name warehouse.lck

The lock belongs to the parent process (the script, the Meltano run), and is stale once that has ended: \
the next `lock` takes it over at once. Locking what the same process holds already succeeds with a warning. \
Between the tries, `lock` wakes up as soon as the lock is released or its owner ends.";

const UNLOCK_HELP: &str = "\
Examples:
  serializer unlock
  serializer unlock --force    # takes the lock away from its owner, and says from whom

Only the process that locked can unlock, or anybody once that has ended. Anything else is refused with exit code 77.";

const STATUS_HELP: &str = "\
Examples:
  serializer status
  serializer status --all --dir ~/locks
  serializer status --json | jq -r '.locks[].state'    # free, held, stale or unknown";

/// The whole command line.
#[derive(Debug, Parser)]
#[command(
    name = "serializer",
    version,
    about = "A mutex for data pipelines: makes the parts that must not overlap run one at a time"
)]
#[command(after_help = AFTER_HELP, max_term_width = 110, subcommand_required = true, arg_required_else_help = true)]
pub struct Cli {
    /// How to report.
    #[command(flatten)]
    pub log: LogArgs,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What can be done.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Take the lock, run a command, and release it
    #[command(after_help = RUN_HELP)]
    Run(RunArgs),
    /// Take the lock, waiting for it as long as another process holds it
    #[command(after_help = LOCK_HELP)]
    Lock(LockArgs),
    /// Release the lock
    #[command(after_help = UNLOCK_HELP)]
    Unlock(UnlockArgs),
    /// Show who holds the lock, since when, and whether that process still runs
    #[command(after_help = STATUS_HELP)]
    Status(StatusArgs),
    /// Make sure that locks can be kept in the directory, creating it if need be
    Initialize(InitializeArgs),
    /// List the commands (for Meltano)
    Describe(DescribeArgs),
    /// Print a completion script for a shell
    Completions(CompletionsArgs),
    /// Print the manual page, of this program or of one of its commands
    Man(ManArgs),
}

/// How to report.
#[derive(Args, Clone, Debug, Default)]
#[command(next_help_heading = "Messages")]
pub struct LogArgs {
    /// Least important messages to show: debug, info, warning or error [env: LOG_LEVEL]
    #[arg(long, global = true, value_name = "LEVEL", ignore_case = true, hide_possible_values = true)]
    #[arg(value_parser = ["debug", "info", "warning", "warn", "error", "critical"])]
    pub log_level: Option<String>,
    /// Begin messages with the time [env: LOG_TIMESTAMPS]
    #[arg(long, global = true)]
    pub log_timestamps: bool,
    /// Begin messages with their level [env: LOG_LEVELS]
    #[arg(long, global = true)]
    pub log_levels: bool,
    /// Write messages as JSON, a line each [env: MELTANO_LOG_JSON]
    #[arg(long, global = true)]
    pub meltano_log_json: bool,
}

/// Which lock.
#[derive(Args, Clone, Debug, Default)]
pub struct LockFileArgs {
    /// Name of the lock file; an absolute path overrides the directory [env: SERIALIZER_FILE_NAME] [default: serializer.lck]
    #[arg(long, alias = "filename", value_name = "NAME")]
    pub file_name: Option<PathBuf>,
    /// Directory of the lock file [env: SERIALIZER_DIR] [default: /tmp]
    #[arg(long, alias = "filedir", value_name = "DIR")]
    pub dir: Option<PathBuf>,
}

/// Completions know the possible values of this parser.
fn orphans() -> impl TypedValueParser<Value = Orphans> {
    PossibleValuesParser::new(["wait", "ignore"]).try_map(|word| config::parse_orphans(&word))
}

/// Who owns the lock, and what keeps it held.
#[derive(Args, Clone, Debug, Default)]
pub struct OwnerArgs {
    /// Process that owns the lock [env: SERIALIZER_OWNER_PID] [default: the parent process]
    #[arg(long, value_name = "PID", value_parser = config::parse_owner_pid, allow_negative_numbers = true)]
    pub owner_pid: Option<Pid>,
    /// `wait` for processes that outlive the Meltano run that held the lock, or `ignore` them [env: SERIALIZER_ORPHANS] [default: wait]
    #[arg(long, value_name = "wait|ignore", value_parser = orphans(), hide_possible_values = true)]
    pub orphans: Option<Orphans>,
}

/// How long to wait.
#[derive(Args, Clone, Debug, Default)]
pub struct WaitingArgs {
    /// How often to try; 0 = for ever [env: SERIALIZER_MAX_ATTEMPTS] [default: 0]
    #[arg(long, alias = "maxattempts", value_name = "N", value_parser = config::parse_max_attempts, allow_negative_numbers = true)]
    pub max_attempts: Option<u32>,
    /// Seconds from one try to the next; fractions are allowed [env: SERIALIZER_SLEEP_SECONDS] [default: 1]
    #[arg(long, alias = "sleepseconds", value_name = "SECONDS", value_parser = config::parse_sleep_seconds, allow_negative_numbers = true)]
    pub sleep_seconds: Option<Duration>,
    /// How long to wait at most, such as 90s, 2m or 1h30m; however many tries that takes
    #[arg(long, value_name = "DURATION", value_parser = config::parse_timeout, allow_negative_numbers = true)]
    #[arg(conflicts_with = "max_attempts")]
    pub timeout: Option<Duration>,
    /// Try once, and do not wait
    #[arg(long, short = 'n', conflicts_with_all = ["max_attempts", "timeout"])]
    pub no_wait: bool,
    /// Exit code when the lock was held until the end of the waiting
    #[arg(long, short = 'E', value_name = "CODE", default_value_t = 75)]
    pub conflict_exit_code: u8,
}

/// `run`
#[derive(Args, Clone, Debug, Default)]
pub struct RunArgs {
    /// Which lock.
    #[command(flatten)]
    pub file: LockFileArgs,
    /// How to wait.
    #[command(flatten)]
    pub waiting: WaitingArgs,
    /// `wait` for processes that outlive the Meltano run that held the lock, or `ignore` them [env: SERIALIZER_ORPHANS] [default: wait]
    #[arg(long, value_name = "wait|ignore", value_parser = orphans(), hide_possible_values = true)]
    pub orphans: Option<Orphans>,
    /// Wait for all processes that the command has started, too
    #[arg(long, hide = true)]
    pub until_children_exit: bool,
    /// Run a script with `$SHELL`, or with /bin/sh
    #[arg(short = 'c', value_name = "SCRIPT", conflicts_with = "command")]
    pub script: Option<OsString>,
    /// The command and its arguments; options of ours stand before it
    #[arg(value_name = "CMD", trailing_var_arg = true, required_unless_present = "script")]
    pub command: Vec<OsString>,
}

/// `lock`
#[derive(Args, Clone, Debug, Default)]
pub struct LockArgs {
    /// Which lock.
    #[command(flatten)]
    pub file: LockFileArgs,
    /// How to wait.
    #[command(flatten)]
    pub waiting: WaitingArgs,
    /// For whom.
    #[command(flatten)]
    pub owner: OwnerArgs,
}

/// `unlock`
#[derive(Args, Clone, Debug, Default)]
pub struct UnlockArgs {
    /// Which lock.
    #[command(flatten)]
    pub file: LockFileArgs,
    /// Take the lock away from whoever holds it
    #[arg(long)]
    pub force: bool,
    /// For whom.
    #[command(flatten)]
    pub owner: OwnerArgs,
}

/// `status`
#[derive(Args, Clone, Debug, Default)]
pub struct StatusArgs {
    /// Lock files to look at, instead of the one that is set up
    #[arg(value_name = "NAME", conflicts_with_all = ["file_name", "all"])]
    pub names: Vec<PathBuf>,
    /// Look at every lock in the directory (files named *.lck or *.lock)
    #[arg(long)]
    pub all: bool,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
    /// Which lock.
    #[command(flatten)]
    pub file: LockFileArgs,
    /// Whose processes count.
    #[arg(long, value_name = "wait|ignore", value_parser = orphans(), hide = true)]
    pub orphans: Option<Orphans>,
}

/// `initialize`
#[derive(Args, Clone, Debug, Default)]
pub struct InitializeArgs {
    /// Which lock.
    #[command(flatten)]
    pub file: LockFileArgs,
    /// Accepted because Meltano extensions have it; there is nothing to overwrite
    #[arg(long, hide = true, action = ArgAction::SetTrue)]
    pub force: bool,
}

/// `describe`
#[derive(Args, Clone, Debug)]
pub struct DescribeArgs {
    /// How to write it
    #[arg(long, value_enum, default_value_t = DescribeFormat::Text)]
    pub format: DescribeFormat,
}

/// How `describe` writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum DescribeFormat {
    /// For people.
    Text,
    /// JSON.
    Json,
    /// YAML.
    Yaml,
}

/// `completions`
#[derive(Args, Clone, Debug)]
pub struct CompletionsArgs {
    /// The shell
    pub shell: clap_complete::Shell,
}

/// `man`
#[derive(Args, Clone, Debug)]
pub struct ManArgs {
    /// The command; without it, the whole program
    pub command: Option<String>,
}
