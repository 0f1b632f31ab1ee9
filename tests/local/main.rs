//! Tests of what one host does: locks as files, without any server.

#[path = "../support/mod.rs"]
mod support;

mod bad_filesystems;
mod bad_input;
mod command_line;
mod containers;
mod crash_points;
mod crash_points_in_line;
mod definitions;
mod flock;
mod hammer;
mod holding_at_least;
mod house;
mod interleavings;
mod lease_policy;
mod lock_rules;
mod mutual_exclusion;
mod once;
mod once_crash_points;
mod once_policy;
mod once_rules;
mod operators;
mod panics;
mod policy;
mod queue_file;
mod recipes;
mod records;
mod run;
mod run_terminal;
mod schedule;
mod schedule_claims;
mod schedule_control;
mod schedule_crash_points;
mod schedule_plan;
mod schedule_policy;
mod sharing;
mod skipping;
mod sshfs;
mod takeover;
mod timetable;
mod timetable_walk;
mod turns;
mod verdicts;
mod wait_and_break;
mod waiting;
