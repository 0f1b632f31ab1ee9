//! Tests that need the machine for themselves, one after another.

#[path = "../support/mod.rs"]
mod support;

mod cron;
mod crontabs;
mod crowds;
mod networks;
mod nfs;
mod run_signals;
