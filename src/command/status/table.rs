//! What `status` tells, for people.

use std::io::IsTerminal;

use comfy_table::{ColumnConstraint, ContentArrangement, Table, presets};

use super::report::Lock;
use crate::local_time::{local_time, short};
use crate::mode::Mode;

/// A line for each holder, and for each who waits.
pub fn table(locks: &[Lock]) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_content_arrangement(ContentArrangement::Disabled);
    table.set_header(["LOCK", "STATE", "PID", "COMMAND", "HOST", "SINCE", "FOR", "WHY"]);
    let or_dash = |text: Option<String>| text.unwrap_or_else(|| "-".to_owned());
    for lock in locks {
        if lock.holders.is_empty() {
            let mut row = vec![lock.path.clone(), lock.state.word().to_owned()];
            row.extend(std::iter::repeat_n("-".to_owned(), 5));
            row.push(or_dash(lock.reason.clone()));
            table.add_row(row);
        }
        for holder in &lock.holders {
            let mode = holder.mode.as_ref().filter(|mode| **mode != Mode::EXCLUSIVE.to_string());
            table.add_row([
                lock.path.clone(),
                holder.state.word().to_owned(),
                or_dash(holder.pid.map(|pid| pid.to_string())),
                or_dash(holder.command.clone()),
                or_dash(holder.host.clone()),
                or_dash(holder.holder.since.map(|since| local_time(since).to_string())),
                or_dash(holder.holder.held_for().map(short)),
                mode.map_or_else(|| holder.reason.clone(), |mode| format!("{}; {mode}", holder.reason)),
            ]);
        }
        for (place, waiter) in lock.waiters.iter().enumerate() {
            let place = match place {
                0 => "next".to_owned(),
                place => format!("behind {place} other{}", if place == 1 { "" } else { "s" }),
            };
            let pid = or_dash(waiter.pid.map(|pid| pid.to_string()));
            let (command, host) = (or_dash(waiter.command.clone()), or_dash(waiter.host.clone()));
            let row = [&lock.path, "waits", &pid, &command, &host, "-", "-", &place];
            table.add_row(row.map(str::to_owned));
        }
    }
    if let Some(width) = terminal_width() {
        // What is long is folded; what is short, and read column by column, is not.
        table.set_content_arrangement(ContentArrangement::Dynamic).set_width(width);
        for column in [1, 2, 4, 5, 6] {
            if let Some(column) = table.column_mut(column) {
                column.set_constraint(ColumnConstraint::ContentWidth);
            }
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
