//! A table without lines.

use std::io::IsTerminal;

use comfy_table::{ColumnConstraint, ContentArrangement, Table, presets};

/// The columns that are folded in a narrow terminal. The others are read column by column.
const FOLDED: [&str; 8] =
    ["LOCK", "KEY", "COMMAND", "WHY", "LAST END", "TASK", "SCHEDULE", "RESULT"];

pub fn table(header: &[&str], rows: impl Iterator<Item = Vec<Option<String>>>) -> String {
    let mut table = Table::new();
    table
        .load_style(presets::NOTHING)
        .set_content_arrangement(ContentArrangement::Disabled)
        .set_header(header);
    table.add_rows(
        rows.map(|row| row.into_iter().map(|cell| cell.unwrap_or_else(|| "-".to_owned()))),
    );
    let stdout = std::io::stdout();
    let size = stdout.is_terminal().then(|| rustix::termios::tcgetwinsize(&stdout).ok()).flatten();
    if let Some(size) = size.filter(|size| size.ws_col > 0) {
        table.set_content_arrangement(ContentArrangement::Dynamic).set_width(size.ws_col);
        for (column, _) in
            table.column_iter_mut().zip(header).filter(|(_, name)| !FOLDED.contains(name))
        {
            column.set_constraint(ColumnConstraint::ContentWidth);
        }
    }
    // The style puts a space before the first column, too.
    let unindented =
        |line: String| line.strip_prefix(' ').unwrap_or(&line).trim_end().to_owned() + "\n";
    table.lines().map(unindented).collect()
}
