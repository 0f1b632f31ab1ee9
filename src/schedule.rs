//! Tasks on a schedule: each slot of a task runs once, on one of the hosts with the same
//! definitions. A task is a key that runs once, with the slot as its period (`docs/protocol.md`,
//! "A task on a schedule").
//!
//! ```text
//! definition   the definition of a task
//! toml_file    reads definitions from TOML,
//! crontab      from a crontab,
//! meltano      and from a Meltano project
//! timetable    the slots of a task (cron: the expressions): pure
//! plan         the next step for a task, by its definition and its stored state: pure
//! ```

mod cron;
pub mod crontab;
pub mod definition;
pub mod meltano;
pub mod plan;
pub mod timetable;
pub mod toml_file;
