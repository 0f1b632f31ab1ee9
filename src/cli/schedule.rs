//! The command line of `schedule`.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Subcommand};
use jiff::Timestamp;

use super::{PlaceArgs, help};
use crate::values;

#[derive(Subcommand)]
pub enum ScheduleCommand {
    /// Run tasks when they are due, until SIGTERM or Ctrl-C; start it on each host
    #[command(after_long_help = help::SCHEDULE_START_HELP)]
    Start(StartArgs),
    /// Run the tasks that are due now, wait for them, and exit; for a crontab
    Tick(TickArgs),
    /// Show each task, with its last run on any host and its next slot
    Status(ScheduleStatusArgs),
    /// Check the definitions, and show the next slots of each task
    Next(NextArgs),
    /// Run a task here and now; exit with its exit code, or with 75 if it is already running
    Run(RunTaskArgs),
    /// Start no more runs of these tasks, on any host
    Pause(PauseArgs),
    /// End the pause of tasks; slots of the pause are skipped
    Resume(TasksArgs),
    /// End the runs of these tasks, on any host
    Stop(TasksArgs),
    /// Remove the stored state of tasks that are not in the file any more
    Forget(TasksArgs),
}

/// Where tasks are defined, and where their state is.
#[derive(Args)]
pub struct CatalogArgs {
    /// File with the tasks [default: serializer.toml]
    #[arg(long, value_name = "FILE", conflicts_with_all = ["crontab", "meltano"])]
    pub file: Option<PathBuf>,
    /// Take the tasks from a crontab
    #[arg(long, value_name = "FILE", conflicts_with = "meltano")]
    pub crontab: Option<PathBuf>,
    /// Take the tasks from the schedules of the Meltano project around the working directory, and
    /// keep their state in its database
    #[arg(long)]
    pub meltano: bool,
    #[command(flatten)]
    pub place: PlaceArgs,
}

#[derive(Args)]
pub struct TickArgs {
    #[command(flatten)]
    pub catalog: CatalogArgs,
    /// How many tasks this scheduler runs at a time [default: number of processors]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    pub jobs: Option<u16>,
    /// Print each line of the tasks' output as JSON, with the time, the task and the slot
    #[arg(long)]
    pub json: bool,
}

#[derive(Args)]
pub struct StartArgs {
    #[command(flatten)]
    pub tick: TickArgs,
    /// How long to wait for running tasks after SIGTERM before ending them
    #[arg(long, value_name = "DURATION", default_value = "25s")]
    #[arg(value_parser = values::parse_duration)]
    pub stop_timeout: Duration,
}

#[derive(Args)]
pub struct ScheduleStatusArgs {
    #[command(flatten)]
    pub catalog: CatalogArgs,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
    /// Print Prometheus's text format, for the textfile collector
    #[arg(long, conflicts_with = "json")]
    pub metrics: bool,
    /// Exit with 1 if a task is overdue, or its last run failed or was interrupted; in a store
    /// without a clock, watch running tasks until they renew their lease
    #[arg(long)]
    pub check: bool,
    /// Refresh the table every second until Ctrl-C
    #[arg(long, conflicts_with_all = ["json", "metrics", "check"])]
    pub watch: bool,
}

#[derive(Args)]
pub struct NextArgs {
    #[command(flatten)]
    pub catalog: CatalogArgs,
    /// Show this task only
    pub task: Option<String>,
    /// How many slots of each task to show
    #[arg(short = 'n', value_name = "N", default_value_t = 5)]
    pub number: u16,
    /// Show slots after this time, such as 2026-12-01T00:00:00Z [default: now]
    #[arg(long, value_name = "TIME", value_parser = values::parse_time)]
    pub from: Option<Timestamp>,
}

#[derive(Args)]
pub struct RunTaskArgs {
    #[command(flatten)]
    pub catalog: CatalogArgs,
    /// Task to run
    pub task: String,
    /// Run it for this slot, such as 2026-12-01T06:00Z [default: now, or a slot to retry]
    #[arg(long, value_name = "TIME", value_parser = values::parse_time)]
    pub slot: Option<Timestamp>,
}

#[derive(Args)]
pub struct TasksArgs {
    /// Names of tasks
    #[arg(value_name = "TASK", required = true)]
    pub tasks: Vec<String>,
    #[command(flatten)]
    pub catalog: CatalogArgs,
}

#[derive(Args)]
pub struct PauseArgs {
    #[command(flatten)]
    pub tasks: TasksArgs,
    /// Resume at this time, such as 2026-12-01T06:00:00Z [default: on `resume`]
    #[arg(long, value_name = "TIME", value_parser = values::parse_time)]
    pub until: Option<Timestamp>,
}
