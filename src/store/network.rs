//! What stores that are reached over a network share: addresses, certificates, and what errors say.

use std::error::Error;
use std::fs::File;
use std::io::{self, ErrorKind, Read};
use std::path::Path;

use percent_encoding::percent_decode_str;
use rustls::RootCertStore;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::{self, PemObject};

use super::failure::{Failure, Result};
use crate::store::address::StoreSettings;
pub use crate::sys::text::sentence;
use crate::sys::text::{self, io_message};

/// A larger password file holds something else.
const MAX_FILE: u64 = 1 << 20;

/// An address `scheme://user:password@hosts/path?option=value`, decoded. Empty parts count as left
/// out. Not `Debug`: it holds secrets.
pub struct Address {
    pub user: Option<String>,
    pub password: Option<String>,
    /// With the ports, and not decoded.
    pub hosts: String,
    /// Without the first `/`.
    pub path: String,
    /// Names in lower case with `_`, and values.
    pub options: Vec<(String, String)>,
    /// Whether a part of a password may have been taken for options.
    is_ambiguous: bool,
}

impl Address {
    /// Takes the address apart. `synonyms` are other names of options. The option `host` may be
    /// given several times.
    pub fn parse(settings: &StoreSettings, synonyms: &[(&str, &str)]) -> Result<Self> {
        // A password may hold `/`, `?` and `@` although it should not: it ends at the last `@`
        // before the options.
        let text = settings.url.rest.as_str();
        let name = |at: &usize| text[at + 1..].split(['=', '&']).next().unwrap_or("");
        let question = text.match_indices('?').map(|(at, _)| at).find(|at| !name(at).contains('@'));
        let (text, query) = question.map_or((text, ""), |at| (&text[..at], &text[at + 1..]));
        let (login, place) = text.rsplit_once('@').unwrap_or(("", text));
        let (user, password) = login.split_once(':').unwrap_or((login, ""));
        let (hosts, path) = place.split_once('/').unwrap_or((place, ""));
        let there = |text: String| Some(text).filter(|text| !text.is_empty());
        let mut address = Self {
            user: there(decoded(user)?),
            password: there(decoded(password)?),
            hosts: hosts.to_owned(),
            path: decoded(path)?,
            options: Vec::new(),
            is_ambiguous: query.contains('@'),
        };
        for option in query.split('&') {
            let (name, value) = option.split_once('=').unwrap_or((option, ""));
            let name = decoded(name)?.to_ascii_lowercase().replace('-', "_");
            let synonym = synonyms.iter().find(|(other, _)| *other == name);
            let name = synonym.map_or(name, |(_, name)| (*name).to_owned());
            if name != "host" && address.options.iter().any(|(other, _)| *other == name) {
                return Err(address.refused(&name, "stands twice"));
            } else if value.is_empty() && (name.contains("ssl") || name.contains("tls")) {
                return Err(address.refused(&name, "has no value"));
            } else if !name.is_empty() {
                address.options.push((name, decoded(value)?));
            }
        }
        Ok(address)
    }

    /// The value of an option, unless it is empty.
    pub fn option(&self, name: &str) -> Option<String> {
        let (_, value) = self.options.iter().find(|(other, _)| other == name)?;
        Some(value.clone()).filter(|value| !value.is_empty())
    }

    /// Refuses other options than the words of `known`, which may be `name=value`.
    pub fn refuse_unknown(&self, known: &str, hint: &str) -> Result<()> {
        let is = |word: &str, (name, value): &(String, String)| {
            word == name || word.split_once('=') == Some((name, value))
        };
        let unknown = |option: &&_| !known.split(' ').any(|word| is(word, option));
        let Some((name, _)) = self.options.iter().find(unknown) else { return Ok(()) };
        let failure = self.refused(name, "is not supported");
        Err(Failure { hint: failure.hint.or(Some(hint.to_owned())), ..failure })
    }

    fn refused(&self, name: &str, why: &str) -> Failure {
        if self.is_ambiguous {
            let why = "what follows the `?` in the address is not a known option";
            let hint = "`?` and `@` in a password are written as `%3F` and `%40`";
            return Failure::refused(why, hint);
        }
        Failure::permanent(format!("the option `{}` of the address {why}", text::field(name)))
    }
}

/// What is not `%` and two digits stays as it is. A `+` is not a space: many secrets have one.
pub fn decoded(text: &str) -> Result<String> {
    let decoded = percent_decode_str(text).decode_utf8().ok().filter(|text| !text.contains('\0'));
    let why = "the address, once its `%` are decoded, is not UTF-8, or contains a null character";
    decoded.map(String::from).ok_or_else(|| Failure::permanent(why))
}

/// A secret of an address, or else the first line of the password file, without its end.
pub fn secret(given: Option<String>, settings: &StoreSettings) -> Result<Option<String>> {
    let (None, Some(path)) = (&given, &settings.password_file) else { return Ok(given) };
    let shown = text::path(path);
    let cannot = |error| format!("cannot read the password file `{shown}`: {}", io_message(&error));
    let read = File::open(path).and_then(|file| io::read_to_string(file.take(MAX_FILE)));
    let text = read.map_err(|error| Failure::permanent(cannot(error)))?;
    Ok(Some(text.lines().next().unwrap_or("").to_owned()))
}

/// An environment variable without the line end that a mounted secret has, unless it is empty.
pub fn variable(name: &str) -> Option<String> {
    let value = std::env::var(name).ok()?;
    Some(trimmed(&value).to_owned()).filter(|value| !value.is_empty())
}

pub fn trimmed(text: &str) -> &str {
    text.trim_end_matches(['\r', '\n'])
}

/// A file with certificates in PEM, of which one can be used at least.
pub fn certificates(path: &Path) -> Result<Vec<u8>> {
    let shown = text::path(path);
    let cannot = |why| format!("cannot use the certificates in `{shown}`: {why}");
    let cannot = |why: String| Failure::permanent(cannot(why));
    let bytes = std::fs::read(path).map_err(|error| cannot(io_message(&error)))?;
    let (mut store, mut added) = (RootCertStore::empty(), Ok(()));
    let not_pem = |error: pem::Error| format!("it is not PEM: {}", sentence(&error.to_string()));
    for found in CertificateDer::pem_slice_iter(&bytes) {
        added = store.add(found.map_err(|error| cannot(not_pem(error)))?);
    }
    match added {
        _ if !store.is_empty() => Ok(bytes),
        Ok(()) => {
            Err(Failure::permanent(format!("no certificate found in `{shown}`: it must be PEM")))
        }
        Err(error) => Err(cannot(sentence(&error.to_string()))),
    }
}

/// What errors of TLS mean, by a part of their names.
const MEANINGS: [(&str, &str); 11] = [
    ("UnknownIssuer", "its issuer is not trusted"),
    (
        "CaUsedAsEndEntity",
        "it is one of an authority; a server's own has `basicConstraints=CA:FALSE`",
    ),
    ("presented: []", "it has no `subjectAltName`, and a name in its `CN` does not count"),
    ("CertVersion", "it is of X.509 version 1, and version 3 is required"),
    ("BadEncoding", "it cannot be parsed"),
    (
        "BadSignature",
        "the authority is another one of this name, or has an RSA key of under 2048 bits",
    ),
    ("UnsupportedSignatureAlgorithm", "it is signed with SHA-1, or by a key such as P-521"),
    // A server with only a key of another kind sends an alert.
    ("HandshakeFailure", "P-256, P-384 and RSA keys can be verified here, P-521 cannot"),
    ("PeerIncompatible", "P-256, P-384 and RSA keys can be verified here, P-521 cannot"),
    ("KeyMismatch", "they do not belong together"),
    ("parse private key", "the key is damaged, or of another kind than RSA, P-256 and P-384"),
];

/// What an error of TLS means, beside its own text.
pub fn tls_meaning(error: &rustls::Error) -> Option<&'static str> {
    let name = format!("{error:?}");
    MEANINGS.iter().find(|(word, _)| name.contains(word)).map(|(_, meaning)| *meaning)
}

/// What is wrong with a connection that TLS did not accept.
pub fn tls_problem(error: &rustls::Error) -> String {
    let more = tls_meaning(error).map(|meaning| format!(": {meaning}")).unwrap_or_default();
    let text = error.to_string();
    // What follows are numbers.
    let text = text.split(" {").next().unwrap_or("");
    format!("the connection cannot be encrypted: {}{more}", sentence(text))
}

/// An error and its causes. What an `io::Error` wraps is not among its sources.
pub fn chain<'a>(error: Cause<'a>) -> impl Iterator<Item = Cause<'a>> {
    std::iter::successors(Some(error), |&error| match error.downcast_ref::<io::Error>() {
        Some(error) => error.get_ref().map(|inner| inner as Cause<'_>),
        None => error.source(),
    })
}

type Cause<'a> = &'a (dyn Error + 'static);

pub fn tls_error<'a>(error: Cause<'a>) -> Option<&'a rustls::Error> {
    chain(error).find_map(|error| error.downcast_ref())
}

/// The innermost cause, as part of a sentence.
pub fn innermost(error: Cause<'_>) -> String {
    sentence(&chain(error).last().map_or_else(String::new, ToString::to_string))
}

/// Why a server has not answered, where TLS is not the reason. Only without a connection it is
/// certain that nothing was sent.
pub fn unanswered(error: Cause<'_>, server: &str) -> Failure {
    use ErrorKind as K;
    let why = innermost(error);
    let kinds = chain(error).filter_map(|error| Some(error.downcast_ref::<io::Error>()?.kind()));
    let kinds: Vec<_> = kinds.collect();
    let is = |of: &[ErrorKind], words: &[&str]| {
        of.iter().any(|kind| kinds.contains(kind)) || words.iter().any(|said| why.contains(said))
    };
    let no_connection = format!("cannot connect to {server}: {why}");
    if is(&[], &["not known", "No address associated", "not resolve"]) {
        return Failure::permanent(no_connection);
    } else if is(&[K::ConnectionRefused], &["lookup address information"]) {
        return Failure::transient(no_connection);
    } else if is(&[K::PermissionDenied, K::InvalidInput, K::InvalidData], &[]) {
        return Failure::permanent(no_connection).indefinite();
    }
    Failure::transient(if is(&[K::NotFound, K::HostUnreachable, K::NetworkUnreachable], &[]) {
        // An established connection may end because a host is not reachable any more.
        no_connection
    } else if is(&[K::TimedOut, K::WouldBlock], &["timed out", "elapsed"]) {
        // The socket file of a server without room would block.
        format!("{server} does not answer in time")
    } else if is(&[K::UnexpectedEof], &[]) {
        format!("{server} closed the connection")
    } else {
        format!("the connection to {server} broke: {why}")
    })
    .indefinite()
}
