//! Whom an encrypted connection is with.
//!
//! As the clients of databases have it: unless something else is asked for, everybody is trusted, since servers make their
//! certificates themselves. Otherwise a certificate has to come from one of the roots, and, if that is asked for, to be for the host.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, ring};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime, pem};
use rustls::server::ParsedCertificate;
use rustls::{CertificateError, ClientConfig, DigitallySignedStruct, Error, RootCertStore, SignatureScheme};

use super::sentence;
use crate::backend::failure::Failure;
use crate::backend::plain;
use crate::printable;

/// How what is said begins where the encryption failed.
pub const NOT_ENCRYPTED: &str = "the connection cannot be encrypted";

/// What an engine's users know options by, in hints.
pub struct Words {
    /// How to say whom to trust, and how to do with less.
    pub roots: &'static str,
    /// Which option names the key.
    pub key: &'static str,
}

/// Whom to trust.
#[derive(Clone, Copy, Debug)]
#[allow(dead_code, reason = "HTTPS always looks at the name")]
pub enum Trust<'a> {
    /// Whoever answers: against those who only listen.
    Anybody,
    /// Whom these have signed.
    Signed(Option<&'a Roots>),
    /// Whom these have signed, for this host.
    SignedForHost(Option<&'a Roots>),
}

/// Whose certificates are trusted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Roots {
    /// Those that the system trusts.
    System,
    /// Those in this file.
    File(PathBuf),
}

/// What encrypts connections, with our own certificate and its key if there is one.
///
/// # Errors
/// When a certificate or key cannot be used.
pub fn client(trust: Trust<'_>, own: Option<(&Path, &Path)>, words: &Words) -> Result<ClientConfig, Failure> {
    let provider = Arc::new(ring::default_provider());
    let verifier: Arc<dyn ServerCertVerifier> = match trust {
        Trust::Anybody => Arc::new(Anybody(Arc::clone(&provider))),
        Trust::Signed(roots) => Arc::new(Verifier::new(&provider, roots, false, words)?),
        Trust::SignedForHost(roots) => Arc::new(Verifier::new(&provider, roots, true, words)?),
    };
    let builder = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
    let builder = builder.map_err(|error| failure(&error, words))?;
    let builder = builder.dangerous().with_custom_certificate_verifier(verifier);
    let Some((certificate, key)) = own else { return Ok(builder.with_no_client_auth()) };
    let certificates = certificates_in(certificate)?;
    let cannot =
        |why: String| Failure::permanent(format!("cannot use the key `{}`: {why}", printable::path(key))).with_hint(words.key);
    let secret = PrivateKeyDer::from_pem_file(key).map_err(|error| cannot(unreadable(&error)))?;
    builder.with_client_auth_cert(certificates, secret).map_err(|error| cannot(sentence(&error.to_string())))
}

/// What is said of an error. It begins with [`NOT_ENCRYPTED`].
pub fn failure(error: &Error, words: &Words) -> Failure {
    let Error::InvalidCertificate(reason) = error else {
        return Failure::permanent(format!("{NOT_ENCRYPTED}: {}", sentence(&error.to_string())));
    };
    let why = match reason {
        CertificateError::UnknownIssuer | CertificateError::Other(_) => {
            "nobody who is trusted has signed it for a server".to_owned()
        }
        CertificateError::Expired | CertificateError::ExpiredContext { .. } => "it has expired".to_owned(),
        CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => "it is not valid yet".to_owned(),
        CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
            "it is for another host, and its names are looked for in `subjectAltName`".to_owned()
        }
        reason => sentence(&reason.to_string()),
    };
    Failure::permanent(format!("{NOT_ENCRYPTED}: the server's certificate is not accepted: {why}")).with_hint(words.roots)
}

fn certificates_in(path: &Path) -> Result<Vec<CertificateDer<'static>>, Failure> {
    let shown = printable::path(path);
    let certificates = CertificateDer::pem_file_iter(path).and_then(Iterator::collect::<Result<Vec<_>, _>>);
    match certificates {
        Ok(certificates) if !certificates.is_empty() => Ok(certificates),
        Ok(_) => Err(Failure::permanent(format!("there is no certificate in `{shown}`"))),
        Err(error) => Err(Failure::permanent(format!("cannot read the certificates in `{shown}`: {}", unreadable(&error)))),
    }
}

fn unreadable(error: &pem::Error) -> String {
    match error {
        pem::Error::Io(error) => plain(error).to_string(),
        other => sentence(&other.to_string()),
    }
}

/// Trusts what comes from the roots.
#[derive(Debug)]
struct Verifier {
    web: Arc<WebPkiServerVerifier>,
    /// Certificates that a user has named. A server's own, signed by itself, is often among them, which is no authority.
    trusted: Vec<CertificateDer<'static>>,
    wants_name: bool,
}

impl Verifier {
    fn new(provider: &Arc<CryptoProvider>, roots: Option<&Roots>, wants_name: bool, words: &Words) -> Result<Self, Failure> {
        let mut store = RootCertStore::empty();
        let trusted = match roots {
            None => return Err(Failure::permanent("no certificate is known that could be trusted").with_hint(words.roots)),
            Some(Roots::System) => {
                store.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
                Vec::new()
            }
            Some(Roots::File(path)) => {
                let certificates = certificates_in(path).map_err(|failure| failure.with_hint(words.roots))?;
                store.add_parsable_certificates(certificates.iter().cloned());
                certificates
            }
        };
        let web = WebPkiServerVerifier::builder_with_provider(Arc::new(store), Arc::clone(provider)).build();
        let web = web.map_err(|error| {
            let why = sentence(&error.to_string());
            Failure::permanent(format!("there is no certificate that could be trusted: {why}")).with_hint(words.roots)
        });
        Ok(Self { web: web?, trusted, wants_name })
    }
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        certificate: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let is_named = self.trusted.iter().any(|trusted| trusted.as_ref() == certificate.as_ref());
        match self.web.verify_server_cert(certificate, intermediates, name, ocsp, now) {
            // Names are looked at last, when all else is right.
            Err(Error::InvalidCertificate(
                CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
            )) if !self.wants_name => Ok(ServerCertVerified::assertion()),
            // An authority's certificate is no server's, says webpki; but what is trusted to speak for others may speak for itself.
            Err(Error::InvalidCertificate(CertificateError::Other(_))) if is_named => {
                if self.wants_name {
                    rustls::client::verify_server_name(&ParsedCertificate::try_from(certificate)?, name)?;
                }
                Ok(ServerCertVerified::assertion())
            }
            answer => answer,
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.web.verify_tls12_signature(message, certificate, signed)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.web.verify_tls13_signature(message, certificate, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.web.supported_verify_schemes()
    }
}

/// Trusts everybody. Whose key nobody asks for need not be had either: old certificates cannot even be read here.
#[derive(Debug)]
struct Anybody(Arc<CryptoProvider>);

impl ServerCertVerifier for Anybody {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
