//! `--watch`: the status again and again, until a signal ends it or its output is not read.

use std::time::Duration;

use serde_json::Value;

use super::table::terminal;
use crate::command::output::{is_read, print};
use crate::error::Error;
use crate::run::Signals;
use crate::sys::poll;
use crate::sys::text::cut;

/// The poll interval.
const REFRESH: Duration = Duration::from_secs(1);

/// What differs in each look, and is not a change.
const VOLATILE: [&str; 4] = ["held_seconds", "lease_left_seconds", "lease_renewals", "seconds"];

/// The alternate screen of a terminal, without a cursor, which ends when this is dropped.
struct Screen;

impl Screen {
    fn new() -> Result<Self, Error> {
        print(b"\x1b[?1049h\x1b[?25l").map(|()| Self)
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        let _ = print(b"\x1b[?25h\x1b[?1049l");
    }
}

/// Shows a text; on a terminal in place, as much of it as there is room.
pub fn watch(look: &mut dyn FnMut() -> Result<String, Error>) -> Result<(), Error> {
    show(false, &mut || look().map(|text| (text.clone(), text)))
}

/// Prints a line of JSON for each change.
pub fn changes(look: &dyn Fn() -> Result<Value, Error>) -> Result<(), Error> {
    show(true, &mut || {
        let report = look()?;
        let mut steady = report.clone();
        forget_volatile(&mut steady);
        Ok((steady.to_string(), format!("{report}\n")))
    })
}

/// Shows what `look` finds: what counts as a change, and a text.
fn show(
    is_json: bool,
    look: &mut dyn FnMut() -> Result<(String, String), Error>,
) -> Result<(), Error> {
    let (mut next, mut shown) = (Some(look()?), String::new());
    // Signals wait until the terminal is as it was.
    let signals = terminal().filter(|_| !is_json).and_then(|_| Signals::hold().ok());
    let screen = signals.as_ref().map(|_| Screen::new()).transpose()?;
    loop {
        if let Some((state, text)) = next.filter(|(state, _)| screen.is_some() || *state != shown) {
            let size = terminal().filter(|_| screen.is_some());
            if !is_read(size.map_or(text.clone(), |size| frame(&text, size)).as_bytes())? {
                return Ok(());
            }
            shown = state;
        }
        let fds = signals.as_ref().map(Signals::fds);
        poll::sleep(REFRESH, fds.as_ref().map(<[_; 4]>::as_slice).unwrap_or_default())
            .map_err(|error| Error::io("cannot sleep", &error.into()))?;
        if let Some(signals) = signals.as_ref().filter(|signals| signals.is_ending()) {
            drop(screen);
            signals.die();
            return Ok(());
        }
        // An error may be temporary.
        next = match look() {
            Err(_) if is_json => None,
            looked => Some(looked.unwrap_or_else(|why| (why.to_string(), format!("{why}\n")))),
        };
    }
}

/// The text from the upper left corner on, clipped to the screen.
fn frame(text: &str, (columns, rows): (u16, u16)) -> String {
    let mut lines: Vec<_> = text.lines().map(str::to_owned).collect();
    let room = usize::from(rows.max(2));
    if lines.len() > room {
        let more = lines.len() - room + 1;
        lines.truncate(room - 1);
        lines.push(format!("+{more} more"));
    }
    // Lines with colours are parts of a table, which fits.
    let fitting = |line: &String| {
        if line.contains('\x1b') { line.clone() } else { cut(line, usize::from(columns)) }
    };
    let lines: Vec<_> = lines.iter().map(fitting).collect();
    format!("\x1b[H{}\x1b[K\x1b[J", lines.join("\x1b[K\r\n"))
}

fn forget_volatile(value: &mut Value) {
    match value {
        Value::Array(all) => all.iter_mut().for_each(forget_volatile),
        Value::Object(fields) => {
            fields.retain(|name, _| !VOLATILE.contains(&name.as_str()));
            // `free in 12s unless its lease is renewed`
            if let Some(Value::String(why)) = fields.get_mut("why") {
                *why = why
                    .split(' ')
                    .filter(|word| !word.starts_with(|c: char| c.is_ascii_digit()))
                    .collect();
            }
            fields.values_mut().for_each(forget_volatile);
        }
        _ => {}
    }
}
