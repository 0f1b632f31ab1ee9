//! Metrics in the text format of Prometheus (version 0.0.4), made from what `--json` shows.

use std::fmt::Write as _;

use serde_json::Value;

/// Name, help, and the value of a row.
pub type Metric = (&'static str, &'static str, fn(&Value) -> Option<f64>);

/// The metrics of these `locks`, `keys` or `tasks`.
pub fn text(all: &str, rows: &[Value], metrics: &[Metric]) -> String {
    let kind = all.trim_end_matches('s');
    // A lock is told apart by its path, or by its store and its name.
    let of = |row: &Value| {
        let field = |name: &str| row[name].as_str();
        let own = ["key", "task", "path"].into_iter().find_map(field).map(str::to_owned);
        let [store, name] = ["store", "name"].map(|name| field(name).unwrap_or_default());
        own.unwrap_or_else(|| format!("{store}#{name}"))
    };
    let mut text = String::new();
    for (name, help, value) in metrics {
        let unit = if name.ends_with("_total") { "counter" } else { "gauge" };
        let name = format!("serializer_{kind}_{name}");
        let _ = writeln!(text, "# HELP {name} {help}\n# TYPE {name} {unit}");
        for row in rows {
            let Some(value) = value(row) else { continue };
            let mut labels = format!("{kind}={}", quoted(&of(row)));
            // Keys of several places may have the same name.
            let place = row["store"].as_str().or(row["path"].as_str());
            if let Some(place) = place.filter(|_| kind == "key") {
                labels += &format!(",place={}", quoted(place));
            }
            let _ = writeln!(text, "{name}{{{labels}}} {value}");
        }
    }
    text
}

fn quoted(label: &str) -> String {
    let label = label.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
    format!("\"{label}\"")
}

/// Whether a field has one of these values; `None` for what cannot be read.
pub fn is(row: &Value, field: &str, values: &[&str]) -> Option<f64> {
    let is_it = row[field].as_str().is_some_and(|value| values.contains(&value));
    (row["state"] != "error").then(|| f64::from(is_it))
}

/// A field in milliseconds, in seconds.
pub fn seconds(row: &Value, field: &str) -> Option<f64> {
    row[field].as_f64().map(|milliseconds| milliseconds / 1000.0)
}
