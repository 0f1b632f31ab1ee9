//! What an error of a connection means: of the network, of TLS, of the client. What a server
//! answers is the engine's to judge.
//!
//! Only a server's refusal is definite. Once there is a connection, a statement that was not sent
//! and one without an answer look alike.

use std::io::{self, ErrorKind};
use std::path::Path;

use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{AlertDescription, CertificateError};
use sqlx::Error;

use super::{Tls, TlsMode};
use crate::backend::failure::Failure;
use crate::backend::network::sentence;
use crate::backend::plain;
use crate::printable;

/// What was going on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Connecting: nothing was sent.
    Connect,
    /// Reading.
    Read,
    /// Writing.
    Write,
}

/// What the users of an engine know options by, in hints.
pub struct Hints {
    /// Which option names the trusted authorities.
    pub roots: &'static str,
    /// Which option names the key.
    pub key: &'static str,
    /// How to do without TLS.
    pub plain: &'static str,
}

/// An error that is not a server's answer.
pub fn of(error: &Error, phase: Phase, hints: &Hints) -> Failure {
    let failure = match error {
        Error::Io(error) => of_io(error, hints),
        Error::Tls(error) => match error.downcast_ref::<rustls::Error>() {
            Some(error) => of_tls(error, hints),
            None if error.to_string().contains("not support TLS") => {
                Failure::permanent("the server does not encrypt connections").with_hint(hints.plain)
            }
            None => Failure::permanent(format!("TLS: {}", sentence(&error.to_string()))),
        },
        Error::PoolTimedOut => no_answer(),
        // The server speaks, but not this protocol, or wants a password in an unknown way.
        Error::Protocol(text) if phase == Phase::Connect => Failure::permanent(format!("cannot log in: {}", sentence(text))),
        Error::Configuration(error) => Failure::permanent(sentence(&error.to_string())),
        other => Failure::transient(sentence(&other.to_string())),
    };
    if phase == Phase::Write { failure.indefinite() } else { failure }
}

/// No answer within the time.
pub fn no_answer() -> Failure {
    Failure::transient("the server does not answer in time")
}

fn of_io(error: &io::Error, hints: &Hints) -> Failure {
    if let Some(error) = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()) {
        return of_tls(error, hints);
    }
    let why = plain(error).to_string();
    match error.kind() {
        // A socket file whose server lets no more in would block.
        ErrorKind::TimedOut | ErrorKind::WouldBlock => no_answer(),
        ErrorKind::UnexpectedEof => Failure::transient("the server closed the connection"),
        ErrorKind::PermissionDenied | ErrorKind::InvalidInput | ErrorKind::InvalidData => Failure::permanent(why),
        _ => Failure::transient(why),
    }
}

/// Why there is no connection to `host`.
pub fn of_connecting(error: &Error, host: &str, hints: &Hints) -> Failure {
    let failure = of(error, Phase::Connect, hints);
    let Error::Io(error) = error else { return failure };
    let shown = printable::field(host);
    // Only the text tells an unknown name from a resolver that fails.
    if let Some((_, why)) = failure.why.split_once("failed to lookup address information: ") {
        let why = why.to_lowercase();
        let passes = why.contains("try again") || why.contains("temporary");
        let why = format!("cannot find the address of `{shown}`: {why}");
        return if passes { Failure::transient(why) } else { Failure::permanent(why) };
    }
    if error.kind() == ErrorKind::InvalidData {
        return failure;
    }
    Failure { why: format!("cannot connect to `{shown}`: {}", failure.why), ..failure }
}

fn of_tls(error: &rustls::Error, hints: &Hints) -> Failure {
    const UNVERIFIABLE: &str = "of a kind that this program cannot verify; P-256, P-384 and RSA are supported, P-521 is not";
    let rustls::Error::InvalidCertificate(reason) = error else {
        let why = match error {
            rustls::Error::AlertReceived(AlertDescription::HandshakeFailure) | rustls::Error::PeerIncompatible(_) => {
                format!("both sides have no method in common; perhaps the server's key is {UNVERIFIABLE}")
            }
            rustls::Error::InconsistentKeys(_) => "the own key does not belong to the own certificate".to_owned(),
            other => sentence(&other.to_string()),
        };
        return Failure::permanent(format!("the connection cannot be encrypted: {why}")).with_hint(hints.plain);
    };
    let why = match reason {
        CertificateError::UnknownIssuer => "no trusted authority has signed it".to_owned(),
        CertificateError::Expired | CertificateError::ExpiredContext { .. } => "it has expired".to_owned(),
        CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => "it is not valid yet".to_owned(),
        CertificateError::NotValidForNameContext { presented, .. } if presented.is_empty() => {
            "it names no host in `subjectAltName`; a name in `CN` alone does not count".to_owned()
        }
        CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
            "it is for another host, by the names in its `subjectAltName`".to_owned()
        }
        CertificateError::UnsupportedSignatureAlgorithmContext { .. }
        | CertificateError::UnsupportedSignatureAlgorithmForPublicKeyContext { .. } => {
            format!("a key or signature in its chain is {UNVERIFIABLE}")
        }
        CertificateError::Other(other) if other.to_string().contains("CaUsedAsEndEntity") => {
            "it is an authority's own certificate; sign another one with it for the server".to_owned()
        }
        other => sentence(&other.to_string()),
    };
    let why = format!("the connection cannot be encrypted: the server's certificate is not accepted: {why}");
    Failure::permanent(why).with_hint(hints.roots)
}

/// Reads the files of a connection's TLS, so that one that cannot be used is named.
///
/// # Errors
/// When one cannot be used.
pub fn check_files(tls: &Tls, hints: &Hints) -> Result<(), Failure> {
    if let Some(roots) = tls.roots.as_deref().filter(|_| tls.mode >= TlsMode::VerifyCa) {
        check_certificates(roots).map_err(|failure| failure.with_hint(hints.roots))?;
    }
    let Some((certificate, key)) = tls.own.as_ref().filter(|_| tls.mode > TlsMode::Disable) else { return Ok(()) };
    check_certificates(certificate)?;
    let cannot =
        |why: String| Failure::permanent(format!("cannot use the key `{}`: {why}", printable::path(key))).with_hint(hints.key);
    let key = PrivateKeyDer::from_pem_file(key).map_err(|error| cannot(of_pem(&error, "key")))?;
    let usable = rustls::crypto::ring::sign::any_supported_type(&key);
    usable.map(drop).map_err(|error| cannot(sentence(&error.to_string())))
}

fn check_certificates(path: &Path) -> Result<(), Failure> {
    let cannot = |why: String| Failure::permanent(format!("cannot use the certificates in `{}`: {why}", printable::path(path)));
    let read = CertificateDer::pem_file_iter(path).and_then(Iterator::collect::<Result<Vec<_>, _>>);
    let all = read.map_err(|error| cannot(of_pem(&error, "certificate")))?;
    if all.is_empty() {
        return Err(cannot(of_pem(&pem::Error::NoItemsFound, "certificate")));
    }
    let mut store = rustls::RootCertStore::empty();
    all.into_iter().try_for_each(|one| store.add(one)).map_err(|error| cannot(sentence(&error.to_string())))
}

fn of_pem(error: &pem::Error, what: &str) -> String {
    match error {
        pem::Error::Io(error) => plain(error).to_string(),
        pem::Error::NoItemsFound => format!("it holds no {what}, in PEM without a passphrase"),
        other => format!("it is not PEM: {}", sentence(&other.to_string())),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use rustls::pki_types::ServerName;
    use rustls::{AlertDescription, CertificateError};

    use super::{Hints, check_files, of_tls};
    use crate::backend::sql::{Tls, TlsMode};

    const HINTS: Hints = Hints { roots: "roots", key: "key", plain: "plain" };

    #[test]
    fn what_is_wrong_with_a_certificate_is_said() {
        let expected = ServerName::try_from("db.example").expect("a name");
        let of_names = |names: &[&str]| CertificateError::NotValidForNameContext {
            expected: expected.clone(),
            presented: names.iter().map(|name| (*name).to_owned()).collect(),
        };
        for (error, why) in [
            (of_names(&[]).into(), "a name in `CN` alone does not count"),
            (of_names(&["other.example"]).into(), "for another host"),
            (CertificateError::UnknownIssuer.into(), "no trusted authority"),
            (CertificateError::Expired.into(), "expired"),
            (rustls::Error::AlertReceived(AlertDescription::HandshakeFailure), "P-521 is not"),
        ] {
            let failure = of_tls(&error, &HINTS);
            assert!(failure.why.contains(why) && failure.hint.is_some(), "{}", failure.why);
            assert!(!failure.cause.passes(), "{}", failure.why);
        }
    }

    #[test]
    fn a_file_that_cannot_be_used_is_named_with_what_is_wrong() {
        let dir = tempfile::tempdir().expect("a directory");
        let file = |name: &str, text: &str| {
            let path = dir.path().join(name);
            fs::write(&path, text).expect("it can be written");
            path
        };
        let authority = file("root.crt", include_str!("../../../tests/support/root.crt"));
        let pem = |kind: &str, body: &str| format!("-----BEGIN {kind}-----\n{body}\n-----END {kind}-----\n");
        let (empty, broken) = (file("empty", ""), file("broken", &pem("CERTIFICATE", "!!!")));
        let garbage = file("garbage", &pem("CERTIFICATE", "AAAA"));
        let key = file("key", &pem("PRIVATE KEY", "AAAA"));
        let refused = |roots: Option<&_>, own: Option<(&_, &_)>| {
            let own = own.map(|(one, other): (&std::path::PathBuf, &std::path::PathBuf)| (one.clone(), other.clone()));
            let tls = Tls { mode: TlsMode::VerifyFull, roots: roots.cloned(), own };
            check_files(&tls, &HINTS).err().map(|failure| failure.why)
        };
        assert_eq!(refused(Some(&authority), None), None);
        for (found, name, why) in [
            (refused(Some(&empty), None), "empty", "no certificate"),
            (refused(Some(&broken), None), "broken", "not PEM"),
            (refused(Some(&garbage), None), "garbage", "certificate"),
            (refused(None, Some((&authority, &empty))), "empty", "no key"),
            (refused(None, Some((&authority, &key))), "key", "cannot use the key"),
        ] {
            let found = found.expect(why);
            assert!(found.contains(name) && found.contains(why), "{found}");
        }
    }
}
