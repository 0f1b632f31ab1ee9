//! Tests of the stores that hosts share, with servers of their own.

#[path = "../support/mod.rs"]
mod support;

mod abandoned;
mod addresses;
mod clocks;
mod contract;
mod databases;
mod directories;
mod directory_crash_points;
mod directory_faults;
mod directory_files;
mod doctor;
mod dynamodb;
mod failover;
mod fencing;
mod foreign_root;
mod galera;
mod hosts;
mod identities;
mod leases;
mod lines;
mod logins;
mod lost_answers;
mod object_stores;
mod once;
mod once_aec;
mod outages;
mod python;
mod refusals;
mod schedule;
mod schedule_clocks;
mod schedule_hand_over;
mod sera;
mod servers;
mod stopped;
