//! How single values are written. An error says what was expected instead.

use std::ffi::OsString;
use std::fmt::Display;
use std::num::NonZeroU32;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::time::Duration;

use clap::ValueEnum;
use jiff::civil::DateTime;
use jiff::{Span, SpanRelativeTo, Timestamp};
use rustix::process::Pid;
use sha2::{Digest, Sha256};

use crate::sys::local_time::zone;
use crate::sys::{process, text};

/// The longest duration: a year, far from what overflows a clock.
const MAX_SECONDS: u64 = 31_536_000;

fn expected<T>(value: Option<T>, what: impl Display) -> Result<T, String> {
    value.ok_or_else(|| format!("expected {what}"))
}

/// A whole number up to `max`, with or without blanks around it. Rust also reads `+1`.
fn parse_number(text: &str, max: u32) -> Option<u32> {
    let is_plain = text.trim().bytes().all(|byte| byte.is_ascii_digit());
    text.trim().parse().ok().filter(|number| is_plain && *number <= max)
}

/// A whole number from 1 to `MAX`.
pub fn parse_positive<const MAX: u32>(text: &str) -> Result<NonZeroU32, String> {
    let number = parse_number(text, MAX).and_then(NonZeroU32::new);
    expected(number, format!("a whole number from 1 to {MAX}"))
}

pub fn parse_max_attempts(text: &str) -> Result<u32, String> {
    let max = u32::MAX;
    expected(parse_number(text, max), format!("a whole number from 0 (try for ever) to {max}"))
}

/// A number of seconds. Rust also reads `inf`, `nan`, `1e3` and `+1`.
fn parse_seconds(text: &str) -> Option<Duration> {
    let text = text.trim();
    let is_plain = text.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.');
    let seconds = text.parse().ok().filter(|seconds| is_plain && *seconds <= MAX_SECONDS as f64)?;
    Duration::try_from_secs_f64(seconds).ok()
}

pub fn parse_sleep_seconds(text: &str) -> Result<Duration, String> {
    let what = format!("a number of seconds from 0 to {MAX_SECONDS}, such as 1 or 0.5");
    expected(parse_seconds(text), what)
}

pub fn parse_duration(text: &str) -> Result<Duration, String> {
    let days = SpanRelativeTo::days_are_24_hours();
    let span = || text.trim().parse::<Span>().ok()?.to_duration(days).ok()?.try_into().ok();
    let duration: Option<Duration> = parse_seconds(text).or_else(span);
    let duration = duration.filter(|duration| duration.as_secs() <= MAX_SECONDS);
    expected(duration, "a duration up to a year, in seconds or such as 90s, 1h30m or 90d")
}

/// A time with an offset, or else in the local time zone.
pub fn parse_time(text: &str) -> Result<Timestamp, String> {
    let local = || Some(text.parse::<DateTime>().ok()?.to_zoned(zone()).ok()?.timestamp());
    let time = text.parse().ok().or_else(local);
    expected(time, "a time such as 2026-12-01, 2026-12-01T06:00 or 2026-12-01T06:00:00Z")
}

pub fn parse_owner_pid(text: &str) -> Result<Pid, String> {
    let what = format!("a process id, a whole number from 1 to {}", i32::MAX);
    expected(process::parse_pid(text.trim()), what)
}

/// Long enough to be renewed three times over a network, short enough to wait for.
pub fn parse_lease_seconds(text: &str) -> Result<Duration, String> {
    let lease = parse_seconds(text).filter(|lease| (1..=86_400).contains(&lease.as_secs()));
    // Records have whole milliseconds.
    let millis = lease.and_then(|lease| u64::try_from(lease.as_millis()).ok());
    expected(millis.map(Duration::from_millis), "a number of seconds from 1 to 86400, such as 30")
}

pub fn parse_word<T: ValueEnum>(text: &str) -> Result<T, String> {
    T::from_str(text, false).map_err(|_| {
        let words = T::value_variants().iter().filter_map(ValueEnum::to_possible_value);
        let words: Vec<_> = words.map(|word| format!("`{}`", word.get_name())).collect();
        format!("expected {}", words.join(" or "))
    })
}

/// A file name that is the same for equal commands, and for no others.
pub fn name_from_command(command: &[OsString]) -> PathBuf {
    // No argument holds a zero byte, so `a b` and `ab` differ.
    let mut hash = Sha256::new();
    command.iter().for_each(|word| hash.update([word.as_bytes(), &[0]].concat()));
    let hash: String = hash.finalize().iter().take(16).map(|byte| format!("{byte:02x}")).collect();
    let program = command.first().map(|program| program.to_string_lossy()).unwrap_or_default();
    let is_plain = |c: &char| c.is_ascii_alphanumeric() || ['-', '_', '.'].contains(c);
    let program: String = text::base_name(&program).chars().filter(is_plain).take(40).collect();
    format!("{}-{hash}.lck", program.trim_start_matches('.')).into()
}
