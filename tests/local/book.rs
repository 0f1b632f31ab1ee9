//! The README and the pages of `docs/`: links are valid, and each block of commands runs. Stand-ins
//! replace other programs, and a shared directory replaces each store. `recipes.rs` and the tests
//! of stores run the blocks with a name (`<!-- recipe: NAME -->`).

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::support::{Locks, PROGRAM, ended};

/// Beginnings of lines that this test does not run, and the reasons.
const NOT_RUN: [(&str, &str); 12] = [
    ("pip ", "fetches packages: scripts/wheel.sh installs the wheel that it builds"),
    ("uv", "fetches packages"),
    ("cargo ", "takes minutes"),
    ("MATURIN_PEP517_ARGS", "takes minutes"),
    ("scripts/", "runs this test, or takes minutes"),
    ("examples/meltano/demo.sh", "tests/meltano runs it"),
    ("meltano ", "tests/meltano runs such lines with Meltano itself"),
    ("serializer plugin ", "tests/meltano adds what it prints"),
    ("docker ", "needs Docker"),
    ("sudo ", "needs an administrator"),
    ("flock ", "is what `serializer flock` replaces"),
    ("serializer schedule start", "does not end: tests/local/schedule.rs"),
];

/// Other programs that blocks start.
const STAND_INS: [&str; 5] = ["dbt", "load.sh", "extract.sh", "sync.sh", "run_your_etl"];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn pages() -> Vec<PathBuf> {
    let entries = fs::read_dir(root().join("docs")).expect("the pages");
    let paths = entries.map(|entry| entry.expect("an entry").path());
    let mut pages: Vec<_> =
        paths.filter(|path| path.extension().is_some_and(|it| it == "md")).collect();
    pages.sort();
    pages
}

/// The README, other files beside it, and the pages.
fn texts() -> Vec<PathBuf> {
    let beside = ["README.md", "CHANGELOG.md", "CONTRIBUTING.md"].map(|name| root().join(name));
    [beside.to_vec(), pages()].concat()
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn name(path: &Path) -> String {
    path.file_name().expect("a file").to_string_lossy().into_owned()
}

/// A fenced block: the comment before it, its language and its text.
struct Block {
    mark: String,
    language: String,
    text: String,
}

/// Splits a page into its text without blocks, and its blocks.
fn split(text: &str) -> (String, Vec<Block>) {
    let (mut prose, mut blocks, mut open) = (String::new(), Vec::<Block>::new(), false);
    for line in text.lines() {
        match line.strip_prefix("```") {
            Some(language) if !open => {
                let mark = prose.lines().last().filter(|line| line.starts_with("<!--"));
                blocks.push(Block {
                    mark: mark.unwrap_or_default().to_owned(),
                    language: language.to_owned(),
                    text: String::new(),
                });
                open = true;
            }
            Some(_) => open = false,
            None => {
                let text = if open {
                    &mut blocks.last_mut().expect("it is open").text
                } else {
                    &mut prose
                };
                *text += &format!("{line}\n");
            }
        }
    }
    assert!(!open, "a block is not closed");
    (prose, blocks)
}

/// The anchors of a page, as mdBook and GitHub make them.
fn anchors(prose: &str) -> BTreeSet<String> {
    let mut anchors = BTreeSet::new();
    for title in prose.lines().filter(|line| line.starts_with('#')) {
        let title = title.trim_start_matches('#').trim().to_lowercase();
        let kept = title.chars().filter(|c| c.is_alphanumeric() || " -_".contains(*c));
        let anchor: String = kept.map(|c| if c == ' ' { '-' } else { c }).collect();
        let numbered = (1..).map(|number| format!("{anchor}-{number}"));
        let mut names = std::iter::once(anchor.clone()).chain(numbered);
        anchors.insert(names.find(|name| !anchors.contains(name)).expect("there are more"));
    }
    anchors
}

/// The targets of a text's links.
fn links(prose: &str) -> Vec<&str> {
    let targets = prose.split("](").skip(1).filter_map(|rest| rest.split(')').next());
    targets.filter(|target| !target.starts_with("http")).collect()
}

#[test]
fn every_link_leads_to_a_page_and_a_section() {
    let mut wrong = Vec::new();
    for path in texts() {
        let directory = path.parent().expect("a directory");
        let (prose, _) = split(&read(&path));
        for target in links(&prose) {
            let (file, anchor) = target.split_once('#').unwrap_or((target, ""));
            let to = if file.is_empty() { path.clone() } else { directory.join(file) };
            let is_in_book = !target.starts_with("../") || directory == root();
            let leads = anchor.is_empty() || anchors(&split(&read(&to)).0).contains(anchor);
            if !(is_in_book && to.exists() && leads) {
                wrong.push(format!("{}: {target}", path.display()));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn every_page_is_in_the_summary_and_names_its_readers() {
    let summary = read(&root().join("docs/SUMMARY.md"));
    let listed: BTreeSet<_> = links(&summary).into_iter().map(str::to_owned).collect();
    let pages: Vec<_> = pages().into_iter().filter(|page| name(page) != "SUMMARY.md").collect();
    assert_eq!(listed, pages.iter().map(|page| name(page)).collect(), "docs/SUMMARY.md");
    for page in pages {
        let text = read(&page);
        let first = text.split("\n\n").nth(1).unwrap_or_default().replace('\n', " ");
        assert!(
            first.starts_with("This page is for ") && first.contains("After reading "),
            "{}: {first}",
            page.display()
        );
    }
}

#[test]
fn the_readme_is_short() {
    assert!(read(&root().join("README.md")).lines().count() <= 150);
}

/// A directory with stand-ins, locks, a store and tasks.
struct Site {
    locks: Locks,
    store: String,
}

impl Site {
    fn new() -> Self {
        let locks = Locks::durable();
        let path = |name: &str| locks.dir().join(name);
        for name in ["bin", "locks", "store", "srv/locks", "srv/keys", "srv/metrics"] {
            fs::create_dir_all(path(name)).expect("a directory");
        }
        symlink(PROGRAM, path("bin/serializer")).expect("a link");
        fs::write(path("store/.serializer-shared"), "machine\n").expect("a file");
        let (_, blocks) = split(&read(&root().join("docs/schedule.md")));
        fs::write(path("serializer.toml"), &blocks[0].text).expect("a file");
        for name in STAND_INS {
            let place = if name.ends_with(".sh") || name.starts_with("run") { "" } else { "bin/" };
            symlink("/bin/true", path(place).join(name)).expect("a link");
        }
        let store = format!("file://{}", path("store").display());
        Self { locks, store }
    }

    /// A line of a page, changed for this directory; an empty command if it is not run.
    fn here(&self, line: &str) -> String {
        if NOT_RUN.iter().any(|(begin, _)| line.starts_with(begin)) {
            // Its continuation lines are omitted, too.
            return if line.ends_with('\\') { ": \\".to_owned() } else { ":".to_owned() };
        }
        let directory = self.locks.dir().display();
        let line = line
            .replace("/mnt/efs/locks", self.store.trim_start_matches("file://"))
            .replace("/etc/serializer.toml", "serializer.toml")
            .replace("/usr/local/bin/", "")
            .replace(" /tmp/", &format!(" {directory}/"))
            .replace("/srv/", &format!("{directory}/srv/"));
        let Some((before, rest)) = line.split_once("SERIALIZER_STORE=") else { return line };
        let end = rest.find(' ').unwrap_or(rest.len());
        format!("{before}SERIALIZER_STORE={}{}", self.store, &rest[end..])
    }

    fn command(&self, script: &str) -> Command {
        let mut command = self.locks.command("sh");
        let path = std::env::var("PATH").expect("PATH is UTF-8");
        command
            .args(["-ec", script])
            .current_dir(self.locks.dir())
            .env("PATH", format!("{}/bin:{path}", self.locks.dir().display()))
            .env("HOME", self.locks.dir())
            .env("SERIALIZER_DIR", self.locks.dir().join("locks"))
            .env("date_to_run", "2026-11-29");
        if script.contains("--detached") {
            command.env("SERIALIZER_STORE", &self.store);
        }
        command
    }

    fn runs(&self, page: &Path, script: &str) {
        let ended = ended(&mut self.command(script));
        assert_eq!(ended.code, 0, "{}: {script}\n{ended:?}", page.display());
        let left = crate::support::ended(&mut self.command("serializer status --exit-code"));
        assert_eq!(left.code, 0, "{}: {script}\nleaves {left:?}", page.display());
    }
}

#[test]
fn the_commands_of_every_page_are_run() {
    for page in texts().iter().filter(|page| name(page) != "messages.md") {
        let (_, blocks) = split(&read(page));
        for block in blocks {
            if block.mark.contains("recipe: ") || block.mark.contains("fencing: ") {
                continue;
            }
            let site = Site::new();
            let lines = block.text.lines().map(|line| site.here(line));
            match block.language.as_str() {
                "sh" => site.runs(page, &lines.collect::<Vec<_>>().join("\n")),
                "crontab" => crontab(&site, page, &block.text),
                "console" => console(&site, page, &block.text),
                // Not commands.
                "text" | "json" | "toml" | "yaml" | "ini" | "python" | "sql" | "dockerfile" => {}
                other => panic!("{}: a block of {other:?}", page.display()),
            }
        }
    }
}

/// Runs each line as cron does, with the variables of earlier lines.
fn crontab(site: &Site, page: &Path, text: &str) {
    let mut variables = String::new();
    for line in text.lines() {
        if !line.starts_with(|c: char| c == '*' || c.is_ascii_digit()) {
            // The programs of the test are elsewhere.
            if !line.starts_with("PATH=") {
                variables += &format!("export {}\n", site.here(line));
            }
            continue;
        }
        let command = line.splitn(6, ' ').nth(5).expect("five fields and a command").trim_start();
        site.runs(page, &(variables.clone() + &site.here(command)));
    }
}

/// The text with each number replaced by 0, and without column widths.
fn normalised(text: &str) -> Vec<String> {
    let word = |word: &str| {
        let mut found = String::new();
        for c in word.chars() {
            let c = if c.is_ascii_digit() { '0' } else { c };
            if c != '0' || !found.ends_with('0') {
                found.push(c);
            }
        }
        found
    };
    text.lines()
        .map(|line| line.split_whitespace().map(word).collect::<Vec<_>>().join(" "))
        .collect()
}

/// Runs the commands after `$ `, and compares their output. After a command in the background, the
/// next one starts when the lock is held.
fn console(site: &Site, page: &Path, text: &str) {
    let text = text.replace("sleep 1; ", "").replace("sleep 10", "sleep 1");
    let held = "for try in $(seq 500); do
            code=0; serializer status --exit-code > /dev/null || code=$?
            [ $code = 0 ] || break; sleep 0.02
        done";
    let (mut script, mut shown) = ("exec 2>&1\n".to_owned(), String::new());
    for line in text.lines() {
        match line.strip_prefix("$ ").map(|command| site.here(command)) {
            Some(command) if command.ends_with('&') => {
                script +=
                    &format!("{} > /dev/null 2>&1 &\n{held}\n", command.trim_end_matches('&'));
            }
            Some(command) => script += &format!("{command}\n"),
            None => shown += &format!("{line}\n"),
        }
    }
    let ended = ended(&mut site.command(&(script + "wait\n")));
    let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
    let locks = site.locks.dir().join("locks").display().to_string();
    let said = ended.stdout.replace(&locks, "/tmp").replace("`/tmp/", "`");
    let said = said.replace(&format!(" on {host}"), " on etl1");
    assert_eq!(normalised(&said), normalised(&shown), "{}: {ended:?}", page.display());
}
