//! `--watch`: the status again and again, until a signal ends it or its output is not read.

use std::time::Duration;

use super::table::terminal;
use crate::command::output::{is_read, print};
use crate::error::Error;
use crate::run::Signals;
use crate::sys::poll;
use crate::sys::text::cut;

const REFRESH: Duration = Duration::from_secs(1);

/// The fields that differ in each look, which is not a change.
const VOLATILE: [&str; 4] =
    [r#""held_seconds""#, r#""lease_left_seconds""#, r#""lease_renewals""#, r#""seconds""#];

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

/// Shows a text; on a terminal in place, as much of it as there is room. Prints a line of JSON for
/// each change.
pub fn watch(is_json: bool, look: &mut dyn FnMut() -> Result<String, Error>) -> Result<(), Error> {
    let (mut next, mut shown) = (Some(look()?), String::new());
    // Signals wait until the terminal is as it was.
    let signals = terminal().filter(|_| !is_json).and_then(|_| Signals::hold().ok());
    let screen = signals.as_ref().map(|_| Screen::new()).transpose()?;
    loop {
        let is_new = |text: &String| screen.is_some() || steady(text, is_json) != shown;
        if let Some(text) = next.filter(is_new) {
            let size = terminal().filter(|_| screen.is_some());
            if !is_read(size.map_or(text.clone(), |size| frame(&text, size)).as_bytes())? {
                return Ok(());
            }
            shown = steady(&text, is_json);
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
            looked => Some(looked.unwrap_or_else(|why| format!("{why}\n"))),
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
    for line in lines.iter_mut().filter(|line| !line.contains('\x1b')) {
        *line = cut(line, usize::from(columns));
    }
    format!("\x1b[H{}\x1b[K\x1b[J", lines.join("\x1b[K\r\n"))
}

/// What counts as a change. `free in 12s unless its lease is renewed` remains the same.
fn steady(text: &str, is_json: bool) -> String {
    let is_steady = |field: &&str| !VOLATILE.iter().any(|name| field.starts_with(name));
    let is_number = |word: &&str| word.starts_with(|c: char| c.is_ascii_digit());
    let fields = text.split(',').filter(|field| !is_json || is_steady(field));
    let words = fields.flat_map(|field| field.split(' '));
    words.filter(|word| !is_json || !is_number(word)).collect()
}
