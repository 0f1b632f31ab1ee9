//! Tasks on a schedule: each slot of a task is run once, on one of the hosts that read the same definitions. A task is a key
//! that runs once, with the slot as its period (`docs/protocol.md`, "A task on a schedule").
//!
//! ```text
//! definition   what the file says: TOML, a crontab, or Meltano's schedules
//! cron         the five fields of a cron expression: pure
//! timetable    when a task is due: pure
//! plan         what to do about a task, by its definition and its stored state: pure
//! ```

pub mod cron;
pub mod definition;
pub mod timetable;
