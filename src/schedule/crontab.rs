//! Reads a user's crontab as it is. A task's name is a comment `# name: shop` on the line above, or
//! else a hash of its line. An error is one line: the file, the line, what is wrong.

use std::collections::BTreeMap;
use std::path::Path;

use jiff::tz::TimeZone;

use super::definition::{Catalog, Definition, check_name};
use super::plan::hash;
use super::timetable::{Timetable, zone};
use crate::sys::text;

const BLANK: [char; 2] = [' ', '\t'];
const QUOTES: [char; 2] = ['"', '\''];

/// What the lines so far say about the next one.
struct Table<'a> {
    catalog: Catalog,
    home: Option<&'a str>,
    env: BTreeMap<String, String>,
    zone: TimeZone,
    /// The name for the task on the next line.
    name: Option<String>,
    /// The lines of the tasks.
    lines: BTreeMap<String, usize>,
}

/// Reads the text of the file at `path`. Until the text sets `HOME` or `CRON_TZ`, tasks run in
/// `home`, at times of `zone`.
pub fn parse(
    text: &str,
    path: &Path,
    home: Option<&str>,
    zone: TimeZone,
) -> Result<Catalog, String> {
    let (catalog, env, name, lines) = Default::default();
    let mut table = Table { catalog, home, env, zone, name, lines };
    // The empty line at the end warns of a name on the last line.
    for (index, line) in text.lines().chain([""]).enumerate() {
        let number = index + 1;
        let read = table.read(line.trim_start_matches(BLANK), number);
        read.map_err(|why| format!("cannot use `{}`: line {number}: {why}", text::path(path)))?;
    }
    Ok(table.catalog)
}

impl Table<'_> {
    fn read(&mut self, line: &str, number: usize) -> Result<(), String> {
        let name = self.name.take();
        let is_task = !line.is_empty() && !line.starts_with('#') && assignment(line).is_none();
        if let Some(name) = name.as_ref().filter(|_| !is_task) {
            let warning = format!("`# name: {name}` (line {}) is not above a task", number - 1);
            self.catalog.warnings.push(warning);
        }
        if let Some(comment) = line.strip_prefix('#') {
            if let Some(name) = comment.trim_start().strip_prefix("name:").map(str::trim) {
                check_name(name)?;
                self.name = Some(name.to_owned());
            }
        } else if let Some((name, value)) = assignment(line) {
            if name == "CRON_TZ" {
                self.zone = zone(value)?;
            }
            self.env.insert(name.to_owned(), value.to_owned());
        } else if is_task {
            let name = name.unwrap_or_else(|| format!("{:08x}", hash(&[line]) >> 32));
            if let Some(other) = self.lines.insert(name.clone(), number) {
                return Err(format!(
                    "line {other} has the name `{name}`, too; a comment `# name: …` sets another"
                ));
            }
            let definition = self.task(line)?;
            self.catalog.tasks.insert(name, definition);
        }
        Ok(())
    }

    fn task(&self, line: &str) -> Result<Definition, String> {
        let invalid = "expected `NAME=value`, or five fields or an alias, and a command";
        let (schedule, command) = fields(line).ok_or(invalid)?;
        if schedule == "@reboot" {
            return Err("`@reboot` is unsupported; a systemd unit can start it".to_owned());
        }
        let timetable = Timetable::cron(schedule, self.zone.clone())?;
        let (command, stdin) = command_and_stdin(command);
        let shell = self.env.get("SHELL").map_or("/bin/sh", String::as_str);
        let command = [shell, "-c", &command].map(str::to_owned).into();
        let schedule = schedule.split_whitespace().collect::<Vec<_>>().join(" ");
        Ok(Definition {
            stdin,
            directory: self.env.get("HOME").map(String::as_str).or(self.home).map(Into::into),
            env: self.env.clone(),
            ..Definition::new(Some(timetable), schedule, command)
        })
    }
}

/// The name and the value of a line that sets a variable. Each may be in quotes; without them, a
/// value ends before trailing blanks, and is not empty.
fn assignment(line: &str) -> Option<(&str, &str)> {
    let (name, rest) = match line.starts_with(QUOTES) {
        true => quoted(line)?,
        false => line.split_at(line.find(|c| c == '=' || BLANK.contains(&c))?),
    };
    let value = rest.trim_start_matches(BLANK).strip_prefix('=')?.trim_start_matches(BLANK);
    let (value, rest) = match value.starts_with(QUOTES) {
        true => quoted(value)?,
        false => (Some(value.trim_end()).filter(|value| !value.is_empty())?, ""),
    };
    let is_assignment = !name.is_empty() && !name.contains('=') && rest.trim().is_empty();
    is_assignment.then_some((name, value))
}

fn quoted(text: &str) -> Option<(&str, &str)> {
    let quote = text.chars().next().filter(|c| QUOTES.contains(c))?;
    text[1..].split_once(quote)
}

/// The schedule of a line, and the command behind it.
fn fields(line: &str) -> Option<(&str, &str)> {
    let mut rest = line;
    for _ in 0..if line.starts_with('@') { 1 } else { 5 } {
        rest = rest.trim_start_matches(BLANK);
        rest = &rest[rest.find(BLANK)?..];
    }
    let command = rest.trim_start_matches(BLANK);
    (!command.is_empty()).then(|| (&line[..line.len() - rest.len()], command))
}

/// The first `%` ends a command; each further one ends a line of its input. `\%` is a percent sign.
/// In the command, Debian's cron also takes `\\` for a backslash.
fn command_and_stdin(text: &str) -> (String, Option<String>) {
    let mut command = String::new();
    let mut rest = text.chars();
    while let Some(c) = rest.next() {
        match c {
            '%' => break,
            '\\' if rest.as_str().starts_with(['%', '\\']) => command.extend(rest.next()),
            _ => command.push(c),
        }
    }
    let lines: Vec<_> = rest.as_str().split("\\%").map(|part| part.replace('%', "\n")).collect();
    let mut stdin = lines.join("%");
    if !stdin.is_empty() && !stdin.ends_with('\n') {
        stdin.push('\n');
    }
    (command, Some(stdin).filter(|stdin| !stdin.is_empty()))
}
