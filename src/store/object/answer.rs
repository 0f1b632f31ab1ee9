//! What a server says instead of doing what it was asked.

use http::HeaderMap;
use serde_json::Value;

use crate::store::network::sentence;

/// What a server said.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    /// The name of the error: `NoSuchKey`, `ConditionNotMet` …; empty without one.
    pub code: String,
    /// What the server says about it, as part of a sentence; may be empty.
    message: String,
    /// The region of the bucket.
    pub region: Option<String>,
}

impl Answer {
    /// Takes an answer apart: XML of the stores, JSON of servers that give out credentials, whose
    /// codes are not the store's.
    pub fn of(status: u16, headers: &HeaderMap, body: &[u8]) -> Self {
        let text = String::from_utf8_lossy(body);
        let header = |name: &str| headers.get(name)?.to_str().ok().map(str::to_owned);
        let json: Value = serde_json::from_str(&text).unwrap_or_default();
        let said = ["error_description", "message", "error"]
            .iter()
            .find_map(|name| json.get(*name)?.as_str());
        let code = element(&text, "Code").or_else(|| header("x-ms-error-code"));
        let message = element(&text, "Message").or(said.map(str::to_owned)).unwrap_or_default();
        // Azure's second line identifies the request.
        let message = message
            .lines()
            .next()
            .filter(|line| !line.trim().is_empty())
            .map(sentence)
            .unwrap_or_default();
        let region = header("x-amz-bucket-region").or_else(|| element(&text, "Region"));
        let is_word =
            |text: &String| text.chars().all(|c| c.is_ascii_alphanumeric() || "._-".contains(c));
        Self {
            status,
            code: code.filter(is_word).unwrap_or_default(),
            message,
            region: region.filter(is_word),
        }
    }

    /// As part of a sentence.
    pub fn printable(&self) -> String {
        let Self { status, code, message, .. } = self;
        match (message.is_empty(), code.is_empty()) {
            (false, false) => format!("{message} ({code})"),
            (false, true) => format!("{message} (status {status})"),
            (true, false) => format!("{code} (status {status})"),
            (true, true) => format!("the server answers with status {status}"),
        }
    }
}

/// The text of the first element of this name. Errors are flat, and their texts are short.
fn element(text: &str, name: &str) -> Option<String> {
    let (_, rest) = text.split_once(&format!("<{name}>"))?;
    let (inner, _) = rest.split_once(&format!("</{name}>"))?;
    let entities = [
        ("&lt;", "<"),
        ("&gt;", ">"),
        ("&quot;", "\""),
        ("&apos;", "'"),
        ("&#39;", "'"),
        ("&amp;", "&"),
    ];
    let inner =
        entities.iter().fold(inner.to_owned(), |inner, (code, text)| inner.replace(code, text));
    Some(inner.trim().to_owned())
}
