//! What `status` tells, for people.

use std::io::IsTerminal;

use comfy_table::{ColumnConstraint, ContentArrangement, Table, presets};

use super::report::Lock;
use crate::local_time::{local_time, short};
use crate::mode::Mode;

/// A line for each holder, and for each waiter.
pub fn table(locks: &[Lock]) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_content_arrangement(ContentArrangement::Disabled);
    table.set_header(["LOCK", "STATE", "PID", "COMMAND", "HOST", "SINCE", "FOR", "WHY"]);
    let or_dash = |text: Option<String>| text.unwrap_or_else(|| "-".to_owned());
    let number = |number: Option<i32>| or_dash(number.map(|number| number.to_string()));
    for lock in locks {
        let mut add = |state: &str, rest: [String; 6]| {
            table.add_row([lock.path.clone(), state.to_owned()].into_iter().chain(rest));
        };
        if lock.holders.is_empty() {
            let [pid, command, host, since, held_for] = std::array::from_fn(|_| "-".to_owned());
            add(lock.state, [pid, command, host, since, held_for, or_dash(lock.reason.clone())]);
        }
        for holder in &lock.holders {
            let mode = holder.mode.as_ref().filter(|mode| **mode != Mode::EXCLUSIVE.to_string());
            let since = or_dash(holder.holder.since.map(|since| local_time(since).to_string()));
            let held_for = or_dash(holder.holder.held_for().map(short));
            let why = mode.map_or_else(|| holder.reason.clone(), |mode| format!("{}; {mode}", holder.reason));
            let (command, host) = (or_dash(holder.command.clone()), or_dash(holder.host.clone()));
            add(holder.state, [number(holder.pid), command, host, since, held_for, why]);
        }
        for (place, waiter) in lock.waiters.iter().enumerate() {
            let place = match place {
                0 => "next".to_owned(),
                place => format!("behind {place} other{}", if place == 1 { "" } else { "s" }),
            };
            let (command, host) = (or_dash(waiter.command.clone()), or_dash(waiter.host.clone()));
            add("waits", [number(waiter.pid), command, host, or_dash(None), or_dash(None), place]);
        }
    }
    if let Some(width) = terminal_width() {
        // Long columns are folded; short ones, which are read column by column, are not.
        table.set_content_arrangement(ContentArrangement::Dynamic).set_width(width);
        for column in [1, 2, 4, 5, 6].into_iter() {
            let column = table.column_mut(column);
            column.map(|column| column.set_constraint(ColumnConstraint::ContentWidth));
        }
    }
    // The style puts a space before the first column, too.
    let unindented = |line: String| line.strip_prefix(' ').unwrap_or(&line).trim_end().to_owned() + "\n";
    table.lines().map(unindented).collect()
}

fn terminal_width() -> Option<u16> {
    let stdout = std::io::stdout();
    let size = stdout.is_terminal().then(|| rustix::termios::tcgetwinsize(&stdout).ok())?;
    size.map(|size| size.ws_col).filter(|width| *width > 0)
}
