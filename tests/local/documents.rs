//! `docs/status.md` and `docs/messages.md` say what the program says.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Command, Stdio};
use std::{env, fs};

use serde_json::Value;

use crate::support::{Locks, PROGRAM, Shell, Waiter, ended, until};

fn document(name: &str) -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("docs").join(name)
}

/// Each field by its path, with the type of its value; `null` only if there is nothing else.
fn fields(path: &str, value: &Value, found: &mut BTreeMap<String, &'static str>) {
    let kind = match value {
        Value::Null => "null",
        Value::Bool(_) => "boolean",
        Value::Number(_) => "number",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    };
    match found.get(path) {
        Some(known) if kind == "null" || *known == kind => {}
        known => {
            assert!(known.is_none_or(|known| *known == "null"), "{path} is {known:?} and {kind}");
            found.insert(path.to_owned(), kind);
        }
    }
    match value {
        // One of the holders.
        Value::Object(_) if path.ends_with(".holder") => {}
        Value::Object(all) => {
            all.iter().for_each(|(name, value)| fields(&format!("{path}.{name}"), value, found))
        }
        Value::Array(all) => {
            all.iter().for_each(|value| fields(&format!("{path}[]"), value, found))
        }
        _ => {}
    }
}

#[test]
fn the_json_of_status_has_the_documented_fields() {
    let locks = Locks::durable();
    let mut holder = Shell::start(&locks);
    assert_eq!(holder.run(r#""$S" lock --reason 'month end' 2>/dev/null"#), 0);
    let waiter = Waiter::start(locks.serializer(&["run", "--", "true"]));
    until("it is in line", || !locks.pids("waiters").is_empty());
    assert_eq!(locks.run(&["once", "load", "--", "true"]).code, 0);
    // A lock in a store has other fields.
    let shared = Locks::durable();
    shared.is_shared();
    let mut owner = Shell::start(&shared);
    assert_eq!(owner.run(r#""$S" lock --lease-seconds 60 2>/dev/null"#), 0);
    let mut found = BTreeMap::new();
    for (locks, args) in [
        (&locks, &["status", "--json"][..]),
        (&locks, &["status", "--once", "--json"]),
        (&shared, &["status", "--json", "--lease-seconds", "60"]),
    ] {
        let report = locks.run(args);
        fields("", &serde_json::from_str(&report.stdout).expect("JSON"), &mut found);
    }
    assert_eq!(owner.run(r#""$S" unlock --lease-seconds 60 2>/dev/null"#), 0);
    holder.unlock();
    assert_eq!(waiter.end().code, 0);
    let page = fs::read_to_string(document("status.md")).expect("the page");
    let page = page.split("## JSON").nth(1).expect("its section");
    let rows = page.lines().filter_map(|line| line.strip_prefix("| `")?.split_once("` | "));
    let documented: BTreeMap<_, _> = rows
        .map(|(field, rest)| (field.to_owned(), rest.split(" |").next().unwrap_or_default()))
        .collect();
    let found: BTreeMap<_, _> = found
        .iter()
        .filter_map(|(path, kind)| {
            Some((path.strip_prefix('.').filter(|path| !path.ends_with("[]"))?.to_owned(), *kind))
        })
        .collect();
    assert_eq!(found.keys().collect::<Vec<_>>(), documented.keys().collect::<Vec<_>>());
    for (field, kind) in found {
        assert!(kind == "null" || documented[&field] == kind, "{field} is {kind}");
    }
}

/// The first lines of the page.
const HEAD: &str = "# What serializer says

This page is for users with a message at hand, and for reviewers of changed messages. After reading
it you know which command causes a message: each message follows its command. A test generates the
page: `UPDATE_DOCUMENTS=1 cargo test --all-features --test local -- documents`. PIDs, times, tokens
and the host are replaced; `hold NAME` stands for another process that holds the lock NAME.
";

/// A title, a script with hidden output, and a script with shown output. `s` is the program, and
/// `hold NAME OPTIONS` starts a process that holds a lock.
const MESSAGES: &[(&str, &str, &str)] = &[
    ("Locking", "", ""),
    ("A free lock", "", "s lock; s unlock"),
    ("A lock that the same process holds", "s lock", "s lock"),
    ("Another mode than the one it is held in", "s lock", "s lock --shared"),
    ("A lock that is held", "hold load.lck", "s lock --file-name load.lck --no-wait"),
    (
        "The reason of the holder",
        "hold load.lck --reason 'month end'",
        "s lock --file-name load.lck --no-wait",
    ),
    ("Waiting", "hold load.lck", "s lock --file-name load.lck --timeout 1"),
    (
        "Waiting for one of several slots",
        "hold load.lck --slots 1",
        "s run --file-name load.lck --slots 2 --timeout 1 -- true",
    ),
    ("A stale lock", "bash -c 's lock; true'", "s lock"),
    ("A program's file", "echo hello > notes.txt", "s lock --file-name notes.txt"),
    ("A directory that does not exist", "", "s lock --dir missing; s status --dir missing"),
    ("A process that does not exist", "", "s lock --owner-pid 2147483647"),
    ("Options of stores", "", "s lock --print-token"),
    ("Unlocking", "", ""),
    ("A lock that is not held", "", "s unlock"),
    ("Another process's lock", "hold load.lck", "s unlock --file-name load.lck"),
    ("A name with a blank", "hold 'my lock'", "s unlock --file-name 'my lock'"),
    ("By force", "hold load.lck", "s unlock --force --file-name load.lck"),
    ("A stale lock, unlocked", "bash -c 's lock; true'", "s unlock"),
    ("A lock that stays held", "s lock --hold-at-least 1h", "s unlock"),
    ("Losing a lock", "", ""),
    ("`unlock`", "s lock; bash -c 's unlock --force; true'", "s unlock"),
    ("`lock`", "s lock; bash -c 's unlock --force; true'", "s lock"),
    (
        "`run`",
        "",
        "s run --file-name load.lck -- bash -c 's break load.lck --token $(s status --json \
         load.lck | jq -r .locks[0].holder.token)'",
    ),
    (
        "`once`",
        "",
        "s once --dir \"$KEYS\" load -- bash -c 's forget --dir \"$KEYS\" --force load; true'",
    ),
    ("Breaking", "", ""),
    (
        "By the token",
        "hold load.lck; token=$(s status --json load.lck | jq -r .locks[0].holder.token)",
        "s break load.lck --token \"$token\"",
    ),
    ("Another token", "hold load.lck", "s break load.lck --token x"),
    ("Without a terminal", "hold load.lck", "s break load.lck"),
    ("Running", "", ""),
    ("Verbosely", "", "s run --verbose -- true"),
    ("A command that does not exist", "", "s run -- no-such-command"),
    ("A command that cannot be run", "", "s run -- /"),
    ("Keys", "", ""),
    ("A key that is done", "s once --dir \"$KEYS\" load true", "s once --dir \"$KEYS\" load true"),
    (
        "A key that is given up",
        "s once --dir \"$KEYS\" load --tries 1 false",
        "s once --dir \"$KEYS\" load --tries 1 true",
    ),
    ("Status", "", ""),
    (
        "All locks",
        "hold load.lck --reason 'month end'; hold 'my lock' --slots 3; bash -c 's lock; true'",
        "s status",
    ),
    ("A name that is not in use", "hold load.lck", "s status lod"),
    ("Nothing at all", "", "s status --all"),
    ("Usage", "", ""),
    ("A wrong option", "", "s lock --timout 5"),
    ("A wrong value", "", "s lock --timeout soon"),
    ("A wrong variable", "", "SERIALIZER_SLOTS=none s lock"),
    ("An empty store", "", "SERIALIZER_STORE= s lock"),
    ("An unknown store", "", "s lock --store ftp://host/x"),
    (STORES, "", ""),
    ("An unknown option", "", "s lock --store 'postgres://u@h/db?sslmod=require'"),
    ("An unreachable server", "", "s lock --no-wait --store postgres://u@127.0.0.1:1/db"),
    ("A wrong password", "", "s lock --no-wait --store \"postgres://u:x@$SERVER\""),
    ("A read-only server", "", "s lock --no-wait --store \"postgres://reader:x@$SERVER\""),
    ("A directory of this machine alone", "", "s run --dir \"$KEYS\" --lease-seconds 60 -- true"),
    (
        "A lock that hosts share",
        "s initialize --dir \"$KEYS\" --lease-seconds 60",
        "s run --verbose --dir \"$KEYS\" --lease-seconds 60 -- true",
    ),
    (
        "A lease that is lost",
        "s initialize --dir \"$KEYS\" --lease-seconds 60",
        "s run --dir \"$KEYS\" --lease-seconds 1 -- sh -c 'rm \"$KEYS\"/*.lck; exec sleep 60'",
    ),
];

/// The last section, which a build without stores omits.
const STORES: &str = "Stores";

/// A PostgreSQL server that refuses every login except `reader`'s, and all statements of `reader`.
fn refusing_server() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = format!("{}/db?sslmode=disable", listener.local_addr().expect("its address"));
    let refusal = |code: &str, why: &str| {
        let fields = format!("SERROR\0VERROR\0C{code}\0M{why}\0\0");
        let length = u32::try_from(fields.len() + 4).expect("a short text").to_be_bytes();
        [b"E", &length[..], fields.as_bytes()].concat()
    };
    let ready = b"Z\0\0\0\x05I";
    let serve = move |mut client: TcpStream| -> std::io::Result<()> {
        let mut asked = [0; 4096];
        let length = client.read(&mut asked)?;
        if !asked[..length].windows(6).any(|part| part == b"reader") {
            return client.write_all(&refusal("28P01", "password authentication failed"));
        }
        client.write_all(b"R\0\0\0\x08\0\0\0\0")?;
        client.write_all(ready)?;
        // Ends with the client.
        while client.read(&mut asked)? > 0 {
            client.write_all(&[&refusal("25006", "read-only"), &ready[..]].concat())?;
        }
        Ok(())
    };
    std::thread::spawn(move || {
        listener.incoming().flatten().for_each(|client| drop(serve(client)));
    });
    address
}

/// What makes the page of one run equal to that of another.
const NORMALISED: &str = r"s/\b[0-9a-f]{32}\b/TOKEN/g; s/[0-9]{4}-[0-9]{2}-[0-9]{2} [0-9:]{8}/TIME/g; s/\bpid [0-9]+/pid PID/g
    s/(for|line,) [0-9]+s/\1 0s/g; s/after [0-9]+s/after 1s/; s/ {2,}/  /g
    s/  (held|stale)  [0-9]+s  [0-9]+/  \1  0s  PID/; s/(stays reserved for) [0-9hms]+/\1 1h/";

/// What a command says, and its exit code.
fn said(before: &str, command: &str, server: &str) -> String {
    let (locks, keys) = (Locks::new(), Locks::durable());
    let script = format!(
        r#"s() {{ "$S" "$@"; }}; export -f s
        hold() {{ exec {{held}}< <(exec "$S" run --file-name "$@" -- sh -c 'echo; exec sleep 1000'); pids+=($!); read -r -u $held; }}
        {{ {before}; }} > /dev/null 2>&1
        {{ {command}; }} 2>&1; code=$?
        kill "${{pids[@]}}" 2> /dev/null; exit $code"#
    );
    fs::write(locks.dir().join("nightly.sh"), script).expect("a script");
    let mut bash = locks.command("bash");
    let ended = ended(
        bash.arg("nightly.sh")
            .env("KEYS", keys.dir())
            .env("SERVER", server)
            .env("TZ", "UTC")
            .current_dir(locks.dir()),
    );
    let code =
        if ended.code == 0 { String::new() } else { format!("[exit code {}]\n", ended.code) };
    let said = (ended.stdout + &code).replace(&*locks.dir().to_string_lossy(), "/locks");
    let host = format!(" on {}", rustix::system::uname().nodename().to_string_lossy());
    said.replace(&*keys.dir().to_string_lossy(), "/keys")
        .replace(PROGRAM, "serializer")
        .replace(server.split('/').next().unwrap_or_default(), "SERVER")
        .replace(&host, " on HOST")
}

#[test]
fn messages_are_documented() {
    let (mut page, server) = (HEAD.to_owned(), refusing_server());
    let is_told = |(name, ..): &&(&str, &str, &str)| cfg!(feature = "full") || *name != STORES;
    for (name, before, command) in MESSAGES.iter().take_while(is_told) {
        if command.is_empty() {
            page += &format!("\n## {name}\n");
            continue;
        }
        let shown = |script: &str| {
            format!(" {script}").replace(" s ", " serializer ").replace("'s ", "'serializer ")
        };
        let first = if before.is_empty() {
            String::new()
        } else {
            format!("${} # says nothing\n", shown(before))
        };
        page += &format!("\n{name}:\n\n```console\n{first}${}\n", shown(command));
        page += &format!(
            "{}```\n",
            said(if before.is_empty() { ":" } else { before }, command, &server)
        );
    }
    let mut sed = Command::new("sed")
        .args(["-E", NORMALISED])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("sed");
    let mut input = sed.stdin.take().expect("its input");
    let writer = std::thread::spawn(move || input.write_all(page.as_bytes()).expect("sed reads"));
    let page = String::from_utf8(sed.wait_with_output().expect("sed ends").stdout).expect("text");
    writer.join().expect("it is written");
    let path = document("messages.md");
    if env::var_os("UPDATE_DOCUMENTS").is_some() && cfg!(feature = "full") {
        fs::write(&path, &page).expect("it can be written");
    }
    let known = fs::read_to_string(&path).unwrap_or_default();
    let end = if cfg!(feature = "full") { None } else { known.find(&format!("\n## {STORES}")) };
    let known = &known[..end.unwrap_or(known.len())];
    for (line, (known, now)) in known.lines().zip(page.lines()).enumerate() {
        assert_eq!(
            known,
            now,
            "docs/messages.md, line {}; `UPDATE_DOCUMENTS=1` regenerates it",
            line + 1
        );
    }
    assert_eq!(
        known.lines().count(),
        page.lines().count(),
        "docs/messages.md: `UPDATE_DOCUMENTS=1` regenerates it"
    );
}
