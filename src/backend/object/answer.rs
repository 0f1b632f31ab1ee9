//! What a server says instead of doing what it was asked.

use http::HeaderMap;

use crate::backend::network::sentence;

/// What a server said.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Answer {
    /// The status.
    pub status: u16,
    /// The name of the error: `NoSuchKey`, `ConditionNotMet` …; empty without one.
    pub code: String,
    /// What the server says about it, as part of a sentence; may be empty.
    pub message: String,
    /// The region of the bucket.
    pub region: Option<String>,
}

impl Answer {
    /// Takes an answer apart: XML of the stores, JSON of servers that give out credentials.
    pub fn of(status: u16, headers: &HeaderMap, body: &[u8]) -> Self {
        if (200..300).contains(&status) {
            return Self { status, ..Self::default() };
        }
        let text = String::from_utf8_lossy(&body[..body.len().min(64 * 1024)]);
        let header = |name: &str| headers.get(name)?.to_str().ok().map(str::to_owned);
        let (code, message) = match (element(&text, "Code"), json(&text)) {
            (Some(code), _) => (code, element(&text, "Message").unwrap_or_default()),
            (None, Some((code, message))) => (code, message),
            (None, None) => (header("x-ms-error-code").unwrap_or_default(), String::new()),
        };
        // Azure's second line identifies the request.
        let message = message.lines().next().filter(|line| !line.trim().is_empty()).map(sentence);
        let region = header("x-amz-bucket-region").or_else(|| element(&text, "Region"));
        let is_word = |text: &String| text.chars().all(|c| c.is_ascii_alphanumeric() || "._-".contains(c));
        let code = Some(code).filter(is_word).unwrap_or_default();
        Self { status, code, message: message.unwrap_or_default(), region: region.filter(is_word) }
    }

    /// As part of a sentence.
    pub fn printable(&self) -> String {
        match (self.message.is_empty(), self.code.is_empty()) {
            (false, false) => format!("{} ({})", self.message, self.code),
            (false, true) => format!("{} (status {})", self.message, self.status),
            (true, false) => format!("{} (status {})", self.code, self.status),
            (true, true) => format!("the server answers with status {}", self.status),
        }
    }
}

/// The text of the first element of this name. Errors are flat, and their texts are short.
fn element(text: &str, name: &str) -> Option<String> {
    let (_, rest) = text.split_once(&format!("<{name}>"))?;
    let (inner, _) = rest.split_once(&format!("</{name}>"))?;
    let entities = [("&lt;", "<"), ("&gt;", ">"), ("&quot;", "\""), ("&apos;", "'"), ("&#39;", "'"), ("&amp;", "&")];
    let inner = entities.iter().fold(inner.to_owned(), |inner, (code, text)| inner.replace(code, text));
    Some(inner.trim().to_owned())
}

fn json(text: &str) -> Option<(String, String)> {
    let value: serde_json::Value = serde_json::from_str(text).ok()?;
    let field = |names: [&str; 3]| {
        let found = names.iter().find_map(|name| value.get(*name)?.as_str());
        found.unwrap_or_default().to_owned()
    };
    let (code, message) = (field(["error", "Code", "code"]), field(["error_description", "Message", "message"]));
    (!code.is_empty() || !message.is_empty()).then_some((code, message))
}

#[cfg(test)]
mod tests {
    use http::{HeaderMap, HeaderValue};

    use super::Answer;

    fn answer(status: u16, header: Option<(&'static str, &'static str)>, body: &str) -> Answer {
        let header = header.map(|(name, value)| (name.parse().expect(name), HeaderValue::from_static(value)));
        Answer::of(status, &header.into_iter().collect::<HeaderMap>(), body.as_bytes())
    }

    #[test]
    fn the_answers_of_each_kind_of_server_are_understood() {
        let s3 = answer(
            301,
            Some(("x-amz-bucket-region", "eu-central-1")),
            "<?xml version=\"1.0\"?>\n<Error><Code>PermanentRedirect</Code>\
             <Message>The bucket must be &quot;elsewhere&quot;.</Message></Error>",
        );
        assert_eq!((s3.code.as_str(), s3.region.as_deref()), ("PermanentRedirect", Some("eu-central-1")));
        assert_eq!(s3.printable(), "the bucket must be \"elsewhere\" (PermanentRedirect)");
        let body = "<Error><Code>AuthenticationFailed</Code><Message>Server failed.\nRequestId:1\n</Message></Error>";
        assert_eq!(answer(403, None, body).printable(), "server failed (AuthenticationFailed)");
        let bare = answer(404, Some(("x-ms-error-code", "BlobNotFound")), "");
        assert_eq!(bare.printable(), "BlobNotFound (status 404)");
        let oauth = answer(400, None, "{\"error\":\"invalid_grant\",\"error_description\":\"Bad\"}");
        assert_eq!(oauth.printable(), "bad (invalid_grant)");
    }

    #[test]
    fn every_answer_fits_into_a_line() {
        let body = "<Code>a\nb</Code><Message>x\u{1b}[1m\ny</Message>";
        let odd = answer(500, Some(("x-amz-bucket-region", "a b")), body);
        assert_eq!((odd.code.as_str(), odd.region.as_deref()), ("", None));
        assert!(!odd.printable().chars().any(char::is_control), "{odd:?}");
        let status = "the server answers with status 502";
        assert_eq!(answer(502, None, "<html>Bad gateway</html>").printable(), status);
        assert_eq!(answer(502, None, "{\"a\":1}").printable(), status);
    }
}
