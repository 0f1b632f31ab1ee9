//! How a waiter is called on a server.

use serializer::store::waiter::Waiter;

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
        // Cut off, and of an older version.
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
