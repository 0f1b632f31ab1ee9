//! A table without lines.

use comfy_table::{ColumnConstraint, ContentArrangement, Row, Table, presets};

use crate::logging::is_coloured;

/// The columns that are cut in a narrow terminal. The others are read column by column.
const CUT: [&str; 8] = ["LOCK", "KEY", "COMMAND", "WHY", "LAST END", "TASK", "SCHEDULE", "RESULT"];

fn colour(state: &str) -> Option<&'static str> {
    Some(match state {
        "free" | "done" | "ok" => "32",
        "held" | "running" | "warning" => "33",
        "waits" | "waiting" => "36",
        "stale" | "expired" | "paused" => "35",
        "unknown" | "interrupted" | "failed" | "overdue" => "31",
        "given up" | "error" => "1;31",
        _ => return None,
    })
}

/// Rows under a header, without the columns that are empty in all of them. On a terminal, each is
/// one line.
pub fn table(header: &[&str], rows: impl Iterator<Item = Vec<Option<String>>>) -> String {
    let (rows, terminal): (Vec<_>, _) = (rows.collect(), terminal());
    let mut table = empty(header);
    table.set_truncation_indicator("…");
    match terminal {
        Some((columns, _)) => table.set_width(columns),
        None => table.set_content_arrangement(ContentArrangement::Disabled),
    };
    for row in &rows {
        let mut row = Row::from(row.iter().map(|cell| cell.as_deref().unwrap_or("-")));
        row.max_height(1);
        table.add_row(row);
    }
    for (number, column) in table.column_iter_mut().enumerate() {
        if rows.iter().all(|row| row[number].is_none()) {
            column.set_constraint(ColumnConstraint::Hidden);
        } else if terminal.is_some() && !CUT.contains(&header[number]) {
            column.set_constraint(ColumnConstraint::ContentWidth);
        }
    }
    finished(&table)
}

/// The same with wrapped texts, even without a terminal.
pub fn wrapped(header: &[&str], rows: impl Iterator<Item = Vec<String>>) -> String {
    let mut table = empty(header);
    table.set_width(terminal().map_or(80, |(columns, _)| columns.min(80))).add_rows(rows);
    finished(&table)
}

fn empty(header: &[&str]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_content_arrangement(ContentArrangement::Dynamic);
    table.set_header(header);
    table
}

fn finished(table: &Table) -> String {
    // The style puts a space before the first column, too.
    let lines: Vec<_> = table
        .lines()
        .map(|line| line.strip_prefix(' ').unwrap_or(&line).trim_end().to_owned())
        .collect();
    let header = lines.first().filter(|_| is_coloured());
    let at = header.and_then(|header| header.find("STATE").or_else(|| header.find("STATUS")));
    lines.iter().map(|line| coloured(line, at).unwrap_or_else(|| line.clone()) + "\n").collect()
}

/// The line with the state at this character in its colour.
fn coloured(line: &str, at: Option<usize>) -> Option<String> {
    let (before, rest) = line.split_at(line.char_indices().nth(at?)?.0);
    let state = rest.split("  ").next()?;
    Some(format!("{before}\x1b[{}m{state}\x1b[0m{}", colour(state)?, &rest[state.len()..]))
}

/// The columns and rows of the terminal, if stdout is one.
pub fn terminal() -> Option<(u16, u16)> {
    let size = rustix::termios::tcgetwinsize(std::io::stdout()).ok()?;
    (size.ws_col > 0).then_some((size.ws_col, size.ws_row))
}
