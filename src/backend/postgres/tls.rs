//! Whom an encrypted connection is with.
//!
//! As libpq has it: `require` and less encrypt and trust everybody; `verify-ca` wants a certificate that comes from one of the
//! roots, `verify-full` one for this host as well.

use std::path::Path;
use std::sync::Arc;

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, ring, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::{CertificateError, ClientConfig, DigitallySignedStruct, Error, RootCertStore, SignatureScheme};
use tokio_postgres_rustls::MakeRustlsConnect;

use super::options::{Roots, Ssl, SslMode};
use crate::backend::remote::Failure;
use crate::printable;

/// What encrypts connections.
///
/// # Errors
/// When a certificate or key cannot be used.
pub fn connector(ssl: &Ssl) -> Result<MakeRustlsConnect, Failure> {
    let provider = Arc::new(ring::default_provider());
    let verifier: Arc<dyn ServerCertVerifier> = match ssl.mode {
        SslMode::VerifyCa | SslMode::VerifyFull => {
            Arc::new(Verifier::new(&provider, ssl.roots.as_ref(), ssl.mode == SslMode::VerifyFull)?)
        }
        _ => Arc::new(Anybody(Arc::clone(&provider))),
    };
    let builder = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
    let builder = builder.map_err(|error| Failure::permanent(format!("cannot encrypt: {error}")))?;
    let builder = builder.dangerous().with_custom_certificate_verifier(verifier);
    let mut config = match &ssl.own {
        None => builder.with_no_client_auth(),
        Some((certificate, key)) => {
            let certificates = certificates_in(certificate)?;
            let cannot = |why: String| {
                Failure::permanent(format!("cannot use the key `{}`: {why}", printable::path(key)))
                    .with_hint("it has to be a PEM file without a passphrase, which `sslkey` names")
            };
            let secret = PrivateKeyDer::from_pem_file(key).map_err(|error| cannot(error.to_string()))?;
            builder.with_client_auth_cert(certificates, secret).map_err(|error| cannot(error.to_string()))?
        }
    };
    if ssl.is_direct {
        config.alpn_protocols = vec![b"postgresql".to_vec()];
    }
    Ok(MakeRustlsConnect::new(config))
}

fn certificates_in(path: &Path) -> Result<Vec<CertificateDer<'static>>, Failure> {
    let shown = printable::path(path);
    let certificates = CertificateDer::pem_file_iter(path).and_then(Iterator::collect::<Result<Vec<_>, _>>);
    match certificates {
        Ok(certificates) if !certificates.is_empty() => Ok(certificates),
        Ok(_) => Err(Failure::permanent(format!("there is no certificate in `{shown}`"))),
        Err(error) => Err(Failure::permanent(format!("cannot read the certificates in `{shown}`: {error}"))),
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
    fn new(provider: &Arc<CryptoProvider>, roots: Option<&Roots>, wants_name: bool) -> Result<Self, Failure> {
        let hint = "`sslrootcert` names a file with the certificate of whoever signed the server's; `sslrootcert=system` with \
                    `sslmode=verify-full` trusts whom the system trusts";
        let mut store = RootCertStore::empty();
        let trusted = match roots {
            None => return Err(Failure::permanent("no certificate is known that could be trusted").with_hint(hint)),
            Some(Roots::System) => {
                store.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
                Vec::new()
            }
            Some(Roots::File(path)) => {
                let certificates = certificates_in(path).map_err(|failure| failure.with_hint(hint))?;
                store.add_parsable_certificates(certificates.iter().cloned());
                certificates
            }
        };
        let web = WebPkiServerVerifier::builder_with_provider(Arc::new(store), Arc::clone(provider)).build();
        let web = web.map_err(|error| Failure::permanent(format!("cannot trust anybody: {error}")).with_hint(hint))?;
        Ok(Self { web, trusted, wants_name })
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

/// Trusts everybody, as `sslmode=require` says: against those who only listen.
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
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, certificate, signed, &self.0.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, certificate, signed, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
