//! The command lines of `lock` and of what looks at locks.

use std::path::PathBuf;

use clap::Args;
use clap::builder::NonEmptyStringValueParser;

use super::{A_LOCK, LockFileArgs, NamedLockArgs, OwnerArgs, RequestArgs, RuleArgs, WaitingArgs};
use crate::lock::staleness::Orphans;

#[derive(Args)]
pub struct LockArgs {
    #[command(flatten)]
    pub lock: NamedLockArgs,
    #[command(flatten)]
    pub request: RequestArgs,
    #[command(flatten)]
    pub waiting: WaitingArgs,
    #[command(flatten)]
    pub owner: OwnerArgs,
    /// Print the lock's fencing token: a number that is larger than that of every former holder
    #[arg(long, hide_short_help = true)]
    pub print_token: bool,
    /// Begin a run of this key; exit with 79 if the key is done
    #[arg(long, value_name = "KEY", help_heading = "Keys", hide_short_help = true)]
    #[arg(conflicts_with_all = ["name", "file_name", "slots", "shared", "hold_at_least"])]
    pub once: Option<String>,
    /// Let another process end the run, by `unlock --once KEY --token TOKEN`, before the lease
    /// expires; needs a store
    #[arg(long, requires = "once", conflicts_with = "on_lost")]
    #[arg(help_heading = "Keys", hide_short_help = true)]
    pub detached: bool,
    #[command(flatten)]
    pub rule: RuleArgs,
}

#[derive(Args)]
pub struct UnlockArgs {
    #[command(flatten)]
    pub lock: NamedLockArgs,
    /// Break the lock of every holder
    #[arg(long)]
    pub force: bool,
    #[command(flatten)]
    pub owner: OwnerArgs,
    /// End the run of this key: the key is done
    #[arg(long, value_name = "KEY", conflicts_with_all = ["name", "file_name", "force"])]
    #[arg(hide_short_help = true)]
    pub once: Option<String>,
    /// The run failed: the key is not done
    #[arg(long, requires = "once", hide_short_help = true)]
    pub failed: bool,
    /// How the run ended, for `status`
    #[arg(long, value_name = "TEXT", requires = "once", hide_short_help = true)]
    pub note: Option<String>,
    /// Token of the run, as `lock --once --print-token` printed it
    #[arg(long, value_name = "TOKEN", requires = "once", conflicts_with = "owner_pid")]
    #[arg(value_parser = NonEmptyStringValueParser::new(), hide_short_help = true)]
    pub token: Option<String>,
}

#[derive(Args)]
pub struct WaitArgs {
    /// Locks to wait for, one after another, instead of the configured one
    #[arg(value_name = "NAME", conflicts_with = "file_name", value_hint = A_LOCK)]
    pub names: Vec<PathBuf>,
    /// The names are keys: wait until all are done; exit with 1 if one is given up
    #[arg(long, requires = "names")]
    pub once: bool,
    #[command(flatten)]
    pub file: LockFileArgs,
    #[command(flatten)]
    pub waiting: WaitingArgs,
}

#[derive(Args)]
pub struct BreakArgs {
    #[command(flatten)]
    pub lock: NamedLockArgs,
    /// The NAME is a key of `once`: its run counts as interrupted
    #[arg(long, requires = "name", conflicts_with = "task")]
    pub once: bool,
    /// The NAME is a task on a schedule: its run counts as interrupted
    #[arg(long, requires = "name")]
    pub task: bool,
    /// Token of the holder, as `serializer status --json` shows it; without it, a terminal asks
    #[arg(long, value_name = "TOKEN")]
    pub token: Option<String>,
}

#[derive(Args)]
pub struct StatusArgs {
    /// Locks to show in full, instead of all
    #[arg(value_name = "NAME", conflicts_with_all = ["file_name", "all"], value_hint = A_LOCK)]
    pub names: Vec<PathBuf>,
    /// Show keys instead: running, done, failed, interrupted, given up or expired; without a NAME,
    /// all keys
    #[arg(long, conflicts_with = "file_name")]
    pub once: bool,
    /// Show every lock in the directory or store, even if SERIALIZER_FILE_NAME names one
    #[arg(long)]
    pub all: bool,
    /// Exit with 0 if all are free or stale, 1 if one is held, 3 if unknown, 4 if it cannot be read
    #[arg(long, conflicts_with = "once")]
    pub exit_code: bool,
    /// Print JSON: docs/status.md
    #[arg(long)]
    pub json: bool,
    /// Print metrics for Prometheus, for example for the textfile collector
    #[arg(long, conflicts_with = "json")]
    pub metrics: bool,
    /// Refresh the table every second until Ctrl-C; with --json, print each change
    #[arg(long, conflicts_with = "metrics")]
    pub watch: bool,
    #[command(flatten)]
    pub file: LockFileArgs,
    #[arg(long, hide = true)]
    pub orphans: Option<Orphans>,
}

#[derive(Args)]
pub struct DoctorArgs {
    #[command(flatten)]
    pub lock: NamedLockArgs,
    /// Print JSON: docs/troubleshooting.md
    #[arg(long)]
    pub json: bool,
}

#[derive(Args)]
pub struct InitializeArgs {
    #[command(flatten)]
    pub file: LockFileArgs,
    /// Only print the SQL that creates the store's table, for an administrator
    #[arg(long)]
    pub print_sql: bool,
    /// Accepted because Meltano extensions have it; there is nothing to overwrite
    #[arg(long, hide = true)]
    pub force: bool,
}
