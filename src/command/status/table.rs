//! A table without lines.

use std::io::IsTerminal;

use comfy_table::{ColumnConstraint, ContentArrangement, Row, Table, presets};

use crate::logging::is_coloured;

/// The columns that are cut in a narrow terminal. The others are read column by column.
const CUT: [&str; 8] = ["LOCK", "KEY", "COMMAND", "WHY", "LAST END", "TASK", "SCHEDULE", "RESULT"];

/// The colour of a state (ECMA-48).
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
    let rows: Vec<_> = rows.collect();
    let is_shown: Vec<_> =
        (0..header.len()).map(|column| rows.iter().any(|row| row[column].is_some())).collect();
    let shown = |column: &usize| is_shown[*column];
    let header: Vec<_> = (0..header.len()).filter(shown).map(|column| header[column]).collect();
    let mut table = Table::new();
    table
        .load_style(presets::NOTHING)
        .set_content_arrangement(ContentArrangement::Disabled)
        .set_header(&header);
    table.set_truncation_indicator("…");
    for row in &rows {
        let cells =
            (0..row.len()).filter(shown).map(|column| row[column].as_deref().unwrap_or("-"));
        let mut row = Row::from(cells.collect::<Vec<_>>());
        row.max_height(1);
        table.add_row(row);
    }
    if let Some((columns, _)) = terminal() {
        table.set_content_arrangement(ContentArrangement::Dynamic).set_width(columns);
        for (column, _) in
            table.column_iter_mut().zip(&header).filter(|(_, name)| !CUT.contains(name))
        {
            column.set_constraint(ColumnConstraint::ContentWidth);
        }
    }
    finished(&table)
}

/// The same with wrapped texts, even without a terminal.
pub fn wrapped(header: &[&str], rows: impl Iterator<Item = Vec<String>>) -> String {
    let mut table = Table::new();
    let columns = terminal().map_or(80, |(columns, _)| columns.min(80));
    table
        .load_style(presets::NOTHING)
        .set_content_arrangement(ContentArrangement::Dynamic)
        .set_width(columns)
        .set_header(header)
        .add_rows(rows);
    finished(&table)
}

fn finished(table: &Table) -> String {
    // The style puts a space before the first column, too.
    let lines: Vec<_> = table
        .lines()
        .map(|line| line.strip_prefix(' ').unwrap_or(&line).trim_end().to_owned())
        .collect();
    let states =
        lines.first().and_then(|header| header.find("STATE").or_else(|| header.find("STATUS")));
    lines.iter().map(|line| coloured(line, states.filter(|_| is_coloured())) + "\n").collect()
}

/// The size of the terminal on stdout, in columns and rows.
pub fn terminal() -> Option<(u16, u16)> {
    let stdout = std::io::stdout();
    let size = stdout.is_terminal().then(|| rustix::termios::tcgetwinsize(&stdout).ok())??;
    (size.ws_col > 0).then_some((size.ws_col, size.ws_row))
}

/// The line with the state at this character in its colour.
fn coloured(line: &str, at: Option<usize>) -> String {
    let start = at.and_then(|at| line.char_indices().nth(at)).map(|(start, _)| start);
    let Some((before, rest)) = start.map(|start| line.split_at(start)) else {
        return line.to_owned();
    };
    let state = rest.split("  ").next().unwrap_or_default();
    colour(state).map_or(line.to_owned(), |colour| {
        format!("{before}\x1b[{colour}m{state}\x1b[0m{}", &rest[state.len()..])
    })
}
