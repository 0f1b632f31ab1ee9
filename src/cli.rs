//! The command line, declared. What the words mean is decided in [`crate::config`] and
//! [`crate::command`]. The comments of fields are the help texts.

mod help;
mod lock;
mod run;
mod schedule;

use std::ffi::OsStr;
use std::mem::ManuallyDrop;
use std::num::NonZeroU32;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, FromArgMatches, Parser, Subcommand, ValueHint};
use rustix::process::Pid;

use crate::lease::OnLost;
use crate::lock::staleness::Orphans;
use crate::logging::LogArgs;
use crate::record::mode::MAX_SLOTS;
use crate::store::address::StoreUrl;
use crate::store::engines;
use crate::values;
pub use lock::*;
pub use run::*;
pub use schedule::*;

/// Marks names of locks for [`crate::command::completions`]. Nothing else here is the name of a
/// host.
pub const A_LOCK: ValueHint = ValueHint::Hostname;

#[derive(Parser)]
#[command(name = "serializer", version, long_version = engines::version())]
#[command(
    about = "A mutex for data pipelines: makes the parts that must not overlap run one at a time"
)]
#[command(after_long_help = help::AFTER_HELP, max_term_width = 110)]
#[command(subcommand_required = true, arg_required_else_help = true)]
pub struct Cli {
    #[command(flatten)]
    pub log: LogArgs,
    #[command(subcommand)]
    pub command: Command,
}

impl Cli {
    /// Parses the command line. The commands that run most often are parsed without those of the
    /// rest, which would take most of a start; if that fails, the whole tree says why.
    pub fn parse_once() -> Result<Self, clap::Error> {
        let only = match std::env::args_os().nth(1).as_deref().and_then(OsStr::to_str) {
            Some("run") => Self::parse_only(Command::Run),
            Some("lock") => Self::parse_only(Command::Lock),
            Some("unlock") => Self::parse_only(Command::Unlock),
            Some("once") => Self::parse_only(Command::Once),
            _ => None,
        };
        only.map_or_else(Self::try_parse, Ok)
    }

    /// Drops nothing: that would take a tenth of the time of a start.
    fn parse_only<A: Args>(command: fn(A) -> Command) -> Option<Self> {
        let only = clap::Command::new("serializer").disable_help_flag(true);
        let mut only = ManuallyDrop::new(A::augment_args(LogArgs::augment_args(only)));
        let matches = only.try_get_matches_from_mut(std::env::args_os().skip(1)).ok()?;
        let mut matches = ManuallyDrop::new(matches);
        let log = LogArgs::from_arg_matches_mut(&mut matches).ok()?;
        Some(Self { log, command: command(A::from_arg_matches_mut(&mut matches).ok()?) })
    }
}

/// The number of words after the first `--` of this process's command line.
pub fn words_after_dashes() -> usize {
    std::env::args_os().skip_while(|word| word != "--").skip(1).count()
}

#[derive(Subcommand)]
pub enum Command {
    /// Run a command while holding the lock
    #[command(after_long_help = help::RUN_HELP, override_usage = help::RUN_USAGE)]
    Run(RunArgs),
    /// Acquire the lock, waiting as long as another process holds it
    #[command(after_long_help = help::LOCK_HELP, override_usage = help::LOCK_USAGE)]
    Lock(LockArgs),
    /// Release the lock
    #[command(after_long_help = help::UNLOCK_HELP, override_usage = help::UNLOCK_USAGE)]
    Unlock(UnlockArgs),
    /// Wait until the lock is free, without acquiring it
    #[command(after_long_help = help::WAIT_HELP)]
    Wait(WaitArgs),
    /// Break the lock of one particular holder
    #[command(after_long_help = help::BREAK_HELP)]
    Break(BreakArgs),
    /// Run a command unless its key is done: once a day, or once for all
    #[command(after_long_help = help::ONCE_HELP, override_usage = help::ONCE_USAGE)]
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
    #[command(after_long_help = help::FLOCK_HELP, override_usage = help::FLOCK_USAGE)]
    #[command(version, infer_long_args = true, args_override_self = true)]
    Flock(FlockArgs),
    /// Show the holders of the lock, since when, and whether they still run
    #[command(after_long_help = help::STATUS_HELP)]
    Status(StatusArgs),
    /// Create the directory or table for locks if necessary, and test it
    Initialize(InitializeArgs),
    /// Explain which lock is used and why, and find problems; changes nothing
    #[command(after_long_help = help::DOCTOR_HELP)]
    Doctor(DoctorArgs),
    /// Print the definition of the Meltano plugin, for `meltano add --from-ref`
    Plugin,
    /// List the commands (for Meltano)
    Describe {
        /// How to write it
        #[arg(long, value_parser = ["text", "json", "yaml"], default_value = "text")]
        format: String,
    },
    /// Print a completion script for a shell
    Completions {
        /// The shell
        #[arg(required_unless_present = "names")]
        shell: Option<clap_complete::Shell>,
        /// Print the names of all locks, which such a script offers
        #[arg(long, hide = true)]
        names: bool,
    },
    /// Print the manual page, of this program or of one of its commands
    Man {
        /// The command, such as `lock` or `schedule start`; without it, the whole program
        command: Vec<String>,
    },
}

#[derive(Args)]
#[command(next_help_heading = "Lock")]
pub struct LockFileArgs {
    /// Name of the lock; an absolute path overrides the directory [env: SERIALIZER_FILE_NAME]
    /// [default: serializer.lck]
    #[arg(long = "name", visible_alias = "file-name", alias = "filename", value_name = "NAME")]
    #[arg(value_hint = A_LOCK)]
    pub file_name: Option<PathBuf>,
    #[command(flatten)]
    pub place: PlaceArgs,
}

/// A lock by its name alone.
#[derive(Args)]
pub struct NamedLockArgs {
    /// Name of the lock, as with `--name`
    #[arg(value_name = "NAME", conflicts_with = "file_name", value_hint = A_LOCK)]
    pub name: Option<PathBuf>,
    #[command(flatten)]
    pub file: LockFileArgs,
}

#[derive(Args, Clone, Default)]
#[command(next_help_heading = "Stores")]
pub struct PlaceArgs {
    /// Directory of the lock file, or of keys and tasks [env: SERIALIZER_DIR] [default: /tmp; for
    /// keys and tasks see `once --help`]
    #[arg(long, alias = "filedir", value_name = "DIR", value_hint = ValueHint::DirPath)]
    pub dir: Option<PathBuf>,
    /// Store that many hosts share, instead of a directory, such as postgres://user@host/database
    /// [env: SERIALIZER_STORE]
    #[arg(long, value_name = "URL", conflicts_with = "dir", value_parser = StoreUrl::of_flag)]
    pub store: Option<Result<StoreUrl, String>>,
    /// How long a lock in a store outlives a host that does not renew it [env:
    /// SERIALIZER_LEASE_SECONDS] [default: 30]
    #[arg(long, value_name = "SECONDS", value_parser = values::parse_lease_seconds)]
    #[arg(allow_negative_numbers = true, hide_short_help = true)]
    pub lease_seconds: Option<Duration>,
}

#[derive(Args)]
#[command(next_help_heading = "Lock")]
pub struct OwnerArgs {
    /// Process that owns the lock [env: SERIALIZER_OWNER_PID] [default: the parent process]
    #[arg(long, value_name = "PID", value_parser = values::parse_owner_pid)]
    #[arg(allow_negative_numbers = true)]
    pub owner_pid: Option<Pid>,
    /// `wait` for processes that outlive the Meltano run that held the lock, or `ignore` them [env:
    /// SERIALIZER_ORPHANS] [default: wait]
    #[arg(long, value_name = "wait|ignore", hide_possible_values = true, hide_short_help = true)]
    pub orphans: Option<Orphans>,
}

#[derive(Args)]
#[command(next_help_heading = "Waiting")]
pub struct WaitingArgs {
    /// How often to try; 0 = for ever [env: SERIALIZER_MAX_ATTEMPTS] [default: 0]
    #[arg(long, alias = "maxattempts", value_name = "N", value_parser = values::parse_max_attempts)]
    #[arg(allow_negative_numbers = true, hide_short_help = true)]
    pub max_attempts: Option<u32>,
    /// Seconds from one try to the next; fractions are allowed [env: SERIALIZER_SLEEP_SECONDS]
    /// [default: 1]
    #[arg(long, alias = "sleepseconds", value_parser = values::parse_sleep_seconds)]
    #[arg(value_name = "SECONDS", allow_negative_numbers = true, hide_short_help = true)]
    pub sleep_seconds: Option<Duration>,
    /// How long to wait at most, in seconds or such as 2m or 1h30m, in any number of tries [env:
    /// SERIALIZER_TIMEOUT]
    #[arg(long, short = 'w', visible_alias = "wait", value_parser = values::parse_duration)]
    #[arg(value_name = "DURATION", allow_negative_numbers = true, conflicts_with = "max_attempts")]
    pub timeout: Option<Duration>,
    /// Warn once after this time, such as 10m
    #[arg(long, value_name = "DURATION", value_parser = values::parse_duration)]
    #[arg(hide_short_help = true)]
    pub warn_after: Option<Duration>,
    /// Try once, and do not wait
    #[arg(long, short = 'n', conflicts_with_all = ["max_attempts", "timeout"])]
    pub no_wait: bool,
    /// Exit code if the lock is still held when waiting ends
    #[arg(long, short = 'E', value_name = "CODE", default_value_t = 75, hide_short_help = true)]
    pub conflict_exit_code: u8,
}

#[derive(Args)]
#[command(next_help_heading = "Sharing")]
pub struct RequestArgs {
    /// Allow up to N holders at once; all users of the lock should give the same number [env:
    /// SERIALIZER_SLOTS] [default: 1]
    #[arg(long, value_name = "N", value_parser = values::parse_positive::<MAX_SLOTS>)]
    #[arg(allow_negative_numbers = true)]
    pub slots: Option<NonZeroU32>,
    /// Share the lock with other `--shared` holders, but not with exclusive ones
    #[arg(long, short = 's', conflicts_with = "slots")]
    pub shared: bool,
    /// Keep the lock held for at least this time, such as 30s, even if it is released earlier
    #[arg(long, value_name = "DURATION", value_parser = values::parse_duration)]
    #[arg(help_heading = "Lock", allow_negative_numbers = true, hide_short_help = true)]
    pub hold_at_least: Option<Duration>,
    /// Why the lock is held: shown to waiters and by `status` [env: SERIALIZER_REASON]
    #[arg(long, value_name = "TEXT")]
    pub reason: Option<String>,
    /// If a lock in a store is lost while it is held: `terminate` its holder, or `warn` [env:
    /// SERIALIZER_ON_LOST]
    #[arg(long, value_name = "terminate|warn", hide_possible_values = true)]
    #[arg(help_heading = "Stores", hide_short_help = true)]
    pub on_lost: Option<OnLost>,
}
