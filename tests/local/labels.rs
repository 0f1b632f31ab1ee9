//! The visible parts of foreign text: command lines, fields of records, labels of waiters.

use serializer::store::waiter::Waiter;
use serializer::sys::text::{command_line, field};

#[test]
fn a_label_is_short_and_plain_and_names_the_waiter() {
    let label = Waiter::label(63);
    assert!(label.len() <= 63 && label.is_ascii() && !label.contains(['*', '\'', '\n']), "{label}");
    let told = |label: &str| {
        Waiter::parse(label).map(|waiter| serde_json::json!(waiter).to_string()).unwrap_or_default()
    };
    for (label, expected) in [
        (
            "serializer 4388@etl2 6a0b1c2d: bash ./hourly.sh",
            concat!(
                r#"{"command":"bash ./hourly.sh","host":"etl2","#,
                r#""mode":"exclusive","pid":4388,"since":1779113005}"#
            ),
        ),
        (
            "serializer 4388@etl2 6a0b1c2d shared: bash",
            r#"{"command":"bash","host":"etl2","mode":"shared","pid":4388,"since":1779113005}"#,
        ),
        // Truncated, and from an older version.
        (
            "serializer 4388@etl",
            r#"{"command":null,"host":"etl","mode":null,"pid":4388,"since":null}"#,
        ),
        (
            "serializer 4388@etl2: bash",
            r#"{"command":"bash","host":"etl2","mode":null,"pid":4388,"since":null}"#,
        ),
    ] {
        assert_eq!(told(label), expected);
    }
    for other in ["", "serializer", "serializer x@y: z", "psql", "serializer 0@y"] {
        assert_eq!(Waiter::parse(other), None, "{other}");
    }
}

#[test]
fn only_words_that_cannot_be_secrets_are_shown() {
    for (line, expected) in [
        ("", ""),
        ("/venv/bin/python3 /venv/bin/meltano run tap-x", "meltano run tap-x"),
        ("/venv/bin/python /p/.meltano/run/bin run tap-x", "meltano run tap-x"),
        ("python3.11 -X dev meltano run tap-x", "meltano run tap-x"),
        ("python3.11 -Xdev meltano run tap-x", "meltano run tap-x"),
        ("python3.11 -uW ignore meltano run tap-x", "meltano run tap-x"),
        ("python3.11 -sE --check-hash-based-pycs never meltano run tap-x", "meltano run tap-x"),
        ("python3.11 -I -m meltano run tap-x", "meltano run tap-x"),
        ("python3.11 -mmeltano run tap-x", "meltano run tap-x"),
        ("/usr/bin/python3 -Ic pass", "python3 …"),
        ("/usr/bin/python3 - x", "python3 …"),
        ("/usr/bin/python3 -m", "python3 …"),
        // A script or a title is one argument.
        ("| /bin/airflow task me:hunter2", "airflow task …"),
        ("sleep 600", "sleep 600"),
        ("load.py sales eu --password hunter2 x", "load.py sales eu …"),
        ("psql postgres://me:hunter2@db/x y", "psql …"),
        ("env PGPASSWORD=hunter2 psql", "env …"),
        ("curl | Authorization: Bearer hunter2", "curl …"),
        ("sh -c | cd x; PGPASSWORD=hunter2 psql", "sh -c cd x; …"),
        ("bash -lc | cd x; mysqldump -phunter2 db", "bash -lc cd x; mysqldump …"),
        ("bash ./nightly.sh orders -phunter2 eu", "bash ./nightly.sh orders …"),
        (
            "meltano run --state-id-suffix=x tap-shop dbt:run",
            "meltano run --state-id-suffix=… tap-shop dbt:run",
        ),
        ("meltano config tap-x set token hunter2", "meltano config tap-x set …"),
        ("dbt build -s sales -t prod --no-use-colors x", "dbt build -s … -t … --no-use-colors x"),
        ("dbt run --vars | {a: hunter2}", "dbt run --vars …"),
        ("dbt run --{\"password\":\"hunter2\"} a@b", "dbt run … …"),
        ("serializer run -n -- psql postgres://me:hunter2@db/x", "serializer run -n -- psql …"),
    ] {
        let (words, script) =
            line.split_once("| ").map_or((line, None), |(words, script)| (words, Some(script)));
        let arguments: Vec<_> = words.split_whitespace().chain(script).map(str::to_owned).collect();
        assert_eq!(command_line(&arguments), expected);
    }
}

#[test]
fn nothing_that_moves_the_cursor_is_printed() {
    assert_eq!(field("a\x1b[2Jb\r\nc\u{202e}d"), "a [2Jb  c d");
    assert_eq!(field(&"x".repeat(9999)).len(), 120);
}
