//! What `status` tells, for people.

use std::io::IsTerminal;

use comfy_table::{ColumnConstraint, ContentArrangement, Table, presets};

use super::report::Lock;
use crate::local_time::{local_time, short};
use crate::mode::Mode;

/// A line for each holder, and for each waiter.
pub fn table(locks: &[Lock]) -> String {
    let mut table = new_table(&["LOCK", "STATE", "PID", "COMMAND", "HOST", "SINCE", "FOR", "WHY"]);
    let number = |number: Option<i32>| number.map(|number| number.to_string());
    for lock in locks {
        let mut add = |state: &str, rest: [Option<String>; 6]| {
            let rest = rest.map(|cell| cell.unwrap_or_else(|| "-".to_owned()));
            table.add_row([lock.path.clone(), state.to_owned()].into_iter().chain(rest));
        };
        if lock.holders.is_empty() {
            add(lock.state, [None, None, None, None, None, lock.reason.clone()]);
        }
        for holder in &lock.holders {
            let mode = holder.mode.as_ref().filter(|mode| **mode != Mode::EXCLUSIVE.to_string());
            let since = holder.holder.since.map(|since| local_time(since).to_string());
            let held_for = holder.holder.held_for().map(short);
            let why = holder.reason.clone() + &mode.map(|mode| format!("; {mode}")).unwrap_or_default();
            add(holder.state, [number(holder.pid), holder.command.clone(), holder.host.clone(), since, held_for, Some(why)]);
        }
        for (place, waiter) in lock.waiters.iter().enumerate() {
            let place = match place {
                0 => "next".to_owned(),
                place => format!("behind {place} other{}", if place == 1 { "" } else { "s" }),
            };
            add("waits", [number(waiter.pid), waiter.command.clone(), waiter.host.clone(), None, None, Some(place)]);
        }
    }
    if let Some(width) = terminal_width() {
        // Long columns are folded; short ones, which are read column by column, are not.
        table.set_content_arrangement(ContentArrangement::Dynamic).set_width(width);
        for (_, column) in table.column_iter_mut().enumerate().filter(|(index, _)| ![0, 3, 7].contains(index)) {
            column.set_constraint(ColumnConstraint::ContentWidth);
        }
    }
    rendered(table)
}

/// A table without lines.
pub fn new_table(header: &[&str]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_content_arrangement(ContentArrangement::Disabled);
    table.set_header(header);
    table
}

/// The style puts a space before the first column, too.
pub fn rendered(table: Table) -> String {
    let unindented = |line: String| line.strip_prefix(' ').unwrap_or(&line).trim_end().to_owned() + "\n";
    table.lines().map(unindented).collect()
}

fn terminal_width() -> Option<u16> {
    let stdout = std::io::stdout();
    let size = stdout.is_terminal().then(|| rustix::termios::tcgetwinsize(&stdout).ok())?;
    size.map(|size| size.ws_col).filter(|width| *width > 0)
}
