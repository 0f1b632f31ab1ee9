//! Tasks on a schedule: each slot of a task is run once, on one of the hosts that read the same definitions. A task is a key
//! that runs once, with the slot as its period (`docs/protocol.md`, "A task on a schedule").
//!
//! ```text
//! definition   what the file says
//! toml_file    the readers of it: TOML,
//! crontab      a crontab,
//! meltano      and the schedules of a Meltano project
//! timetable    when a task is due (cron: the expressions): pure
//! plan         what to do about a task, by its definition and its stored state: pure
//! ```

mod cron;
pub mod crontab;
pub mod definition;
pub mod meltano;
pub mod plan;
pub mod timetable;
pub mod toml_file;
