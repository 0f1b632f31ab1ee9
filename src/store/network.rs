//! What stores that are reached over a network have in common: addresses, certificates, and what
//! errors say.

use std::error::Error;
use std::fs::File;
use std::io::{self, ErrorKind, Read as _};
use std::path::Path;

use percent_encoding::percent_decode_str;
use rustls::RootCertStore;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;

use super::failure::Failure;
use crate::store::address::StoreSettings;
use crate::sys::text::{self, io_message};

/// A larger password file holds something else.
const MAX_FILE: u64 = 1 << 20;

/// The longest text of a server that is repeated, in characters.
const MAX_TEXT: usize = 300;

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
    pub fn parse(settings: &StoreSettings, synonyms: &[(&str, &str)]) -> Result<Self, Failure> {
        // A password may hold `/`, `?` and `@` although it should not: it ends at the last `@`
        // before the options.
        let text = settings.url.place();
        let is_option = |at: usize| {
            text[at + 1..].split(['=', '&']).next().is_some_and(|name| !name.contains('@'))
        };
        let options = text
            .match_indices('?')
            .map(|(at, _)| at)
            .find(|at| is_option(*at))
            .unwrap_or(text.len());
        let (login, place) = text[..options].rsplit_once('@').unwrap_or(("", &text[..options]));
        let (user, password) = login.split_once(':').unwrap_or((login, ""));
        let (hosts, path) = place.split_once('/').unwrap_or((place, ""));
        let query = text.get(options + 1..).unwrap_or("");
        let given =
            |text: &str| decoded(text).map(|text| Some(text).filter(|text| !text.is_empty()));
        let mut address = Self {
            user: given(user)?,
            password: given(password)?,
            hosts: hosts.to_owned(),
            path: decoded(path)?,
            options: Vec::new(),
            is_ambiguous: query.contains('@'),
        };
        for (name, value) in
            query.split('&').map(|option| option.split_once('=').unwrap_or((option, "")))
        {
            let name = decoded(name)?.to_ascii_lowercase().replace('-', "_");
            let name = synonyms
                .iter()
                .find(|(other, _)| *other == name)
                .map_or(name, |(_, name)| (*name).to_owned());
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

    /// Refuses options by name that are not known, or not with their values.
    pub fn refuse_unknown(
        &self,
        is_known: impl Fn(&str, &str) -> bool,
        hint: String,
    ) -> Result<(), Failure> {
        let unknown = self.options.iter().find(|(name, value)| !is_known(name, value));
        let Some((name, _)) = unknown else { return Ok(()) };
        let failure = self.refused(name, "is not supported");
        Err(if failure.hint.is_none() { failure.with_hint(hint) } else { failure })
    }

    fn refused(&self, name: &str, why: &str) -> Failure {
        if self.is_ambiguous {
            return Failure::permanent("what follows the `?` in the address is not a known option")
                .with_hint("`?` and `@` in a password are written as `%3F` and `%40`");
        }
        Failure::permanent(format!("the option `{}` of the address {why}", text::field(name)))
    }
}

/// What is not `%` and two digits stays as it is. A `+` is not a space: many secrets and paths have
/// one.
pub fn decoded(text: &str) -> Result<String, Failure> {
    let decoded = percent_decode_str(text).decode_utf8().ok().filter(|text| !text.contains('\0'));
    let failure = || {
        Failure::permanent(
            "the address, once its `%` are decoded, is not UTF-8, or contains a null character",
        )
    };
    decoded.map(String::from).ok_or_else(failure)
}

/// A secret of an address, or else the first line of the password file, without its end.
pub fn secret(given: Option<String>, settings: &StoreSettings) -> Result<Option<String>, Failure> {
    let (None, Some(path)) = (&given, &settings.password_file) else { return Ok(given) };
    let mut text = String::new();
    let read = File::open(path).and_then(|file| file.take(MAX_FILE).read_to_string(&mut text));
    let shown = text::path(path);
    read.map_err(|error| {
        Failure::permanent(format!(
            "cannot read the password file `{shown}`: {}",
            io_message(&error)
        ))
    })?;
    Ok(Some(text.lines().next().unwrap_or("").to_owned()))
}

/// An environment variable without the line end that a mounted secret has, unless it is empty.
pub fn variable(name: &str) -> Option<String> {
    let value = std::env::var(name).ok()?;
    Some(trimmed(&value).to_owned()).filter(|value| !value.is_empty())
}

/// Without line ends.
pub fn trimmed(text: &str) -> &str {
    text.trim_end_matches(['\r', '\n'])
}

/// A file with certificates in PEM, of which one can be used at least.
pub fn certificates(path: &Path) -> Result<Vec<u8>, Failure> {
    let shown = text::path(path);
    let cannot = |why: String| {
        Failure::permanent(format!("cannot use the certificates in `{shown}`: {why}"))
    };
    let bytes = std::fs::read(path).map_err(|error| cannot(io_message(&error).to_string()))?;
    let (mut store, mut added) = (RootCertStore::empty(), Ok(()));
    for found in CertificateDer::pem_slice_iter(&bytes) {
        added =
            store.add(found.map_err(|error| {
                cannot(format!("it is not PEM: {}", sentence(&error.to_string())))
            })?);
    }
    match added {
        _ if !store.is_empty() => Ok(bytes),
        Ok(()) => Err(Failure::permanent(format!("there is no certificate in `{shown}`"))),
        Err(error) => Err(cannot(sentence(&error.to_string()))),
    }
}

/// What is wrong with a connection that TLS did not accept.
pub fn tls_problem(error: &rustls::Error) -> String {
    let (said, name) = (sentence(&error.to_string()), format!("{error:?}"));
    // A server with only a key of another kind sends an alert.
    let of_key = "P-256, P-384 and RSA keys can be verified here, P-521 cannot";
    let known = [
        ("UnknownIssuer", "its issuer is not trusted"),
        (
            "CaUsedAsEndEntity",
            "it is one of an authority; a server's own has `basicConstraints=CA:FALSE`",
        ),
        ("HandshakeFailure", of_key),
        ("PeerIncompatible", of_key),
        ("UnsupportedSignatureAlgorithm", of_key),
    ];
    let more = known.iter().find(|(word, _)| name.contains(word)).map_or("", |(_, more)| more);
    format!(
        "the connection cannot be encrypted: {said}{}{more}",
        if more.is_empty() { "" } else { ": " }
    )
}

/// An error and its causes. What an `io::Error` wraps is not among its sources.
pub fn chain<'a>(
    error: &'a (dyn Error + 'static),
) -> impl Iterator<Item = &'a (dyn Error + 'static)> {
    std::iter::successors(Some(error), |&error| match error.downcast_ref::<io::Error>() {
        Some(error) => error.get_ref().map(|inner| inner as &(dyn Error + 'static)),
        None => error.source(),
    })
}

/// The error of TLS among the causes of an error.
pub fn tls_error<'a>(error: &'a (dyn Error + 'static)) -> Option<&'a rustls::Error> {
    chain(error).find_map(|error| error.downcast_ref())
}

/// The innermost cause, as part of a sentence.
pub fn innermost(error: &(dyn Error + 'static)) -> String {
    let text = chain(error).last().map_or_else(String::new, ToString::to_string);
    sentence(text.split(" (os error").next().unwrap_or(""))
}

/// Why a server has not answered, where TLS is not the reason. Only without a connection it is
/// certain that nothing was sent.
pub fn unanswered(error: &(dyn Error + 'static), server: &str) -> Failure {
    use ErrorKind::{
        ConnectionRefused, HostUnreachable, InvalidData, InvalidInput, NetworkUnreachable,
        NotFound, PermissionDenied, TimedOut, UnexpectedEof, WouldBlock,
    };
    let why = innermost(error);
    let kinds: Vec<_> =
        chain(error).filter_map(|error| error.downcast_ref()).map(io::Error::kind).collect();
    let is_any = |of: &[ErrorKind]| of.iter().any(|kind| kinds.contains(kind));
    let says = |words: &[&str]| words.iter().any(|said| why.contains(said));
    let open = |text: String| Failure::transient(text).indefinite();
    let no_connection = format!("cannot connect to {server}: {why}");
    if says(&["not known", "No address associated", "not resolve"]) {
        Failure::permanent(no_connection)
    } else if is_any(&[ConnectionRefused]) || says(&["lookup address information"]) {
        Failure::transient(no_connection)
    } else if is_any(&[NotFound, HostUnreachable, NetworkUnreachable]) {
        // An established connection may end because a host or network is not reachable any more.
        open(no_connection)
    } else if is_any(&[PermissionDenied, InvalidInput, InvalidData]) {
        Failure::permanent(no_connection).indefinite()
    } else if is_any(&[TimedOut, WouldBlock]) || says(&["timed out", "elapsed"]) {
        // A socket file whose server lets no more in would block.
        open(format!("{server} does not answer in time"))
    } else if is_any(&[UnexpectedEof]) {
        open(format!("{server} closed the connection"))
    } else {
        open(format!("the connection to {server} broke: {why}"))
    }
}

/// A server's words as part of a sentence: on one line, lower case where it is a word, and without
/// its end.
pub fn sentence(text: &str) -> String {
    let text: String =
        text.chars().map(|c| if text::is_safe(c) { c } else { ' ' }).take(MAX_TEXT).collect();
    let text = text.trim().trim_end_matches('.');
    let mut letters = text.chars();
    let (Some(first), second) = (letters.next(), text.chars().nth(1)) else {
        return "unknown error".to_owned();
    };
    // An abbreviation stays one.
    if second.is_some_and(char::is_uppercase) {
        return text.to_owned();
    }
    first.to_lowercase().chain(letters).collect()
}
