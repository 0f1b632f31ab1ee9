//! What a server says when it does not do what it was asked to.

use hyper::header::HeaderMap;
use hyper::http::response::Parts;

use crate::backend::network::sentence;

/// Larger texts are pages for people.
const MAX_TEXT: usize = 64 * 1024;

/// An answer, of which only this is needed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Answer {
    /// The number.
    pub status: u16,
    /// The name of the error: `NoSuchKey`, `ConditionNotMet` …; empty where it has none.
    pub code: String,
    /// What is said about it, as part of a sentence; may be empty.
    pub message: String,
    /// Where the bucket is instead.
    pub region: Option<String>,
}

impl Answer {
    pub fn of(parts: &Parts, body: &[u8]) -> Self {
        let status = parts.status.as_u16();
        if parts.status.is_success() {
            return Self { status, ..Self::default() };
        }
        let text = String::from_utf8_lossy(&body[..body.len().min(MAX_TEXT)]);
        let header = |name: &str| text_of(&parts.headers, name);
        let (code, message) = match (element(&text, "Code"), json(&text)) {
            (Some(code), _) => (code, element(&text, "Message").unwrap_or_default()),
            (None, Some((code, message))) => (code, message),
            // A question that has no body in its answer.
            (None, None) => (header("x-ms-error-code").unwrap_or_default(), String::new()),
        };
        // Azure's second line is an identification.
        let message = message.lines().next().filter(|line| !line.trim().is_empty()).map(sentence).unwrap_or_default();
        let region = header("x-amz-bucket-region").or_else(|| element(&text, "Region"));
        let code = if code.chars().all(|c| c.is_ascii_alphanumeric() || "._-".contains(c)) { code } else { String::new() };
        let region = region.filter(|region| region.chars().all(|c| c.is_ascii_alphanumeric() || c == '-'));
        Self { status, code, message, region }
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

fn text_of(headers: &HeaderMap, name: &str) -> Option<String> {
    headers.get(name)?.to_str().ok().map(str::to_owned)
}

/// What stands in the first element of this name. Errors are flat, and their texts are short.
fn element(text: &str, name: &str) -> Option<String> {
    let (_, rest) = text.split_once(&format!("<{name}>"))?;
    let (inner, _) = rest.split_once(&format!("</{name}>"))?;
    let inner = inner.replace("&lt;", "<").replace("&gt;", ">").replace("&quot;", "\"").replace("&apos;", "'");
    Some(inner.replace("&#39;", "'").replace("&amp;", "&").trim().to_owned())
}

/// Those who give out credentials speak so.
fn json(text: &str) -> Option<(String, String)> {
    let value: serde_json::Value = serde_json::from_str(text).ok()?;
    let field = |name: &str| value.get(name).and_then(serde_json::Value::as_str).map(str::to_owned);
    let code = field("error").or_else(|| field("Code")).or_else(|| field("code")).unwrap_or_default();
    let message = field("error_description").or_else(|| field("Message")).or_else(|| field("message")).unwrap_or_default();
    (!code.is_empty() || !message.is_empty()).then_some((code, message))
}

#[cfg(test)]
mod tests {
    use hyper::http::Response;

    use super::Answer;

    fn answer(status: u16, headers: &[(&str, &str)], body: &str) -> Answer {
        let mut response = Response::builder().status(status);
        for (name, value) in headers {
            response = response.header(*name, *value);
        }
        let (parts, body) = response.body(body.to_owned()).expect("an answer").into_parts();
        Answer::of(&parts, body.as_bytes())
    }

    #[test]
    fn the_words_of_each_kind_of_server_are_understood() {
        let s3 = answer(
            301,
            &[("x-amz-bucket-region", "eu-central-1")],
            "<?xml version=\"1.0\"?>\n<Error><Code>PermanentRedirect</Code><Message>The bucket must be &quot;elsewhere&quot;.</Message></Error>",
        );
        assert_eq!((s3.code.as_str(), s3.region.as_deref()), ("PermanentRedirect", Some("eu-central-1")));
        assert_eq!(s3.printable(), "the bucket must be \"elsewhere\" (PermanentRedirect)");
        let azure = answer(
            403,
            &[],
            "<Error><Code>AuthenticationFailed</Code><Message>Server failed.\nRequestId:1\nTime:2</Message></Error>",
        );
        assert_eq!(azure.printable(), "server failed (AuthenticationFailed)");
        let bare = answer(404, &[("x-ms-error-code", "BlobNotFound")], "");
        assert_eq!(bare.printable(), "BlobNotFound (status 404)");
        let oauth = answer(400, &[], "{\"error\":\"invalid_grant\",\"error_description\":\"Bad\"}");
        assert_eq!(oauth.printable(), "bad (invalid_grant)");
    }

    #[test]
    fn whatever_is_said_fits_into_a_line() {
        let odd = answer(500, &[("x-amz-bucket-region", "a b")], "<Code>a\nb</Code><Message>x\u{1b}[1m\ny</Message>");
        assert_eq!((odd.code.as_str(), odd.region.as_deref()), ("", None));
        assert!(!odd.printable().chars().any(char::is_control), "{odd:?}");
        assert_eq!(answer(502, &[], "<html>Bad gateway</html>").printable(), "the server answers with status 502");
        assert_eq!(answer(500, &[], "{\"a\":1}").printable(), "the server answers with status 500");
    }
}
