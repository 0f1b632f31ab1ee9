//! TLS as the clients of MySQL and MariaDB mean it: unverified where nothing else is asked for, since servers make their
//! certificates themselves.

use std::path::Path;
use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{verify_server_cert_signed_by_trust_anchor, verify_server_name};
use rustls::crypto::{CryptoProvider, ring, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::{
    CertificateError, ClientConfig, ClientConnection, DigitallySignedStruct, RootCertStore, SignatureScheme, StreamOwned,
};

use super::super::remote::Failure;
use super::failure::Trouble;
use super::options::{Options, TlsMode};
use super::transport::{Stream, Wire};
use crate::printable;

/// Speaks TLS from here on.
pub fn secure(wire: Wire, host: &str, options: &Options) -> Result<Stream, Trouble> {
    let provider = Arc::new(ring::default_provider());
    let verifier =
        Verifier { roots: roots(options)?, is_named: options.tls == TlsMode::VerifyIdentity, provider: Arc::clone(&provider) };
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| trouble(&error))?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier));
    let mut config = match (&options.certificate, &options.private_key) {
        (Some(certificate), key) => {
            let chain = certificates(certificate)?;
            // Both may be in one file.
            let key = key.as_ref().unwrap_or(certificate);
            let key = PrivateKeyDer::from_pem_file(key).map_err(|error| unreadable(key, &error))?;
            builder.with_client_auth_cert(chain, key).map_err(|error| trouble(&error))?
        }
        _ => builder.with_no_client_auth(),
    };
    let name = match ServerName::try_from(host.to_owned()) {
        Ok(name) => name,
        Err(_) if options.tls == TlsMode::VerifyIdentity => {
            let why = format!("`{}` is no name that a certificate can have", printable::field(host));
            return Err(Trouble::Unusable(Failure::permanent(why)));
        }
        Err(_) => {
            config.enable_sni = false;
            ServerName::IpAddress(std::net::Ipv4Addr::UNSPECIFIED.into())
        }
    };
    let connection = ClientConnection::new(Arc::new(config), name).map_err(|error| trouble(&error))?;
    let mut stream = StreamOwned::new(connection, wire);
    // Finished here, so that a bad certificate is not found after a password was sent.
    while stream.conn.is_handshaking() {
        stream.conn.complete_io(&mut stream.sock)?;
    }
    Ok(Stream::Secure(Box::new(stream)))
}

/// What cannot be agreed on stays so; a broken connection is no TLS error.
pub fn trouble(error: &rustls::Error) -> Trouble {
    let rustls::Error::InvalidCertificate(reason) = error else {
        let why = format!("no TLS connection can be made: {}", printable::field(&error.to_string()));
        return Trouble::Unusable(Failure::permanent(why));
    };
    let why = match reason {
        CertificateError::UnknownIssuer => "nobody who is trusted has signed it",
        CertificateError::Expired | CertificateError::ExpiredContext { .. } => "it has expired",
        CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => "it is not valid yet",
        CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => "it is for another name",
        CertificateError::Revoked => "it was revoked",
        CertificateError::BadEncoding => "it cannot be read",
        // Signed by itself, mostly.
        _ => "nobody who is trusted has signed it properly",
    };
    let hint = "`ssl_ca` names the file with the certificate that has signed the server's, or with that one itself; \
                `ssl_mode=REQUIRED` encrypts without looking";
    Trouble::Unusable(Failure::permanent(format!("the server's certificate cannot be trusted: {why}")).with_hint(hint))
}

/// Those whom to trust; `None` if that does not matter.
fn roots(options: &Options) -> Result<Option<Roots>, Trouble> {
    if options.tls < TlsMode::VerifyCa {
        return Ok(None);
    }
    let named = match &options.authority {
        Some(path) => certificates(path)?,
        None => rustls_native_certs::load_native_certs().certs,
    };
    let mut store = RootCertStore::empty();
    let (usable, _) = store.add_parsable_certificates(named.iter().cloned());
    if usable == 0 {
        let why = match &options.authority {
            Some(path) => format!("`{}` has no usable certificate", printable::path(path)),
            None => "this machine has no certificates of authorities".to_owned(),
        };
        let hint = "`ssl_ca` names the file with the certificate that has signed the server's";
        return Err(Trouble::Unusable(Failure::permanent(why).with_hint(hint)));
    }
    Ok(Some(Roots { store, named: options.authority.as_ref().map_or_else(Vec::new, |_| named) }))
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, Trouble> {
    let read = || CertificateDer::pem_file_iter(path)?.collect::<Result<Vec<_>, _>>();
    read().map_err(|error| unreadable(path, &error))
}

fn unreadable(path: &Path, error: &rustls::pki_types::pem::Error) -> Trouble {
    let why = match error {
        rustls::pki_types::pem::Error::Io(error) => super::super::plain(error).to_string(),
        other => printable::field(&other.to_string()),
    };
    Trouble::Unusable(Failure::permanent(format!("cannot read `{}`: {why}", printable::path(path))))
}

#[derive(Debug)]
struct Roots {
    store: RootCertStore,
    /// Those that were named in a file. Who signs for itself is no authority, but can be named all the same.
    named: Vec<CertificateDer<'static>>,
}

#[derive(Debug)]
struct Verifier {
    roots: Option<Roots>,
    is_named: bool,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let Some(roots) = &self.roots else { return Ok(ServerCertVerified::assertion()) };
        let certificate = ParsedCertificate::try_from(end_entity)?;
        if !roots.named.contains(end_entity) {
            let algorithms = self.provider.signature_verification_algorithms.all;
            verify_server_cert_signed_by_trust_anchor(&certificate, &roots.store, intermediates, now, algorithms)?;
        }
        if self.is_named {
            verify_server_name(&certificate, server_name)?;
        }
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        // Whose key nobody asks for need not be had; old certificates cannot even be read here.
        if self.roots.is_none() {
            return Ok(HandshakeSignatureValid::assertion());
        }
        verify_tls12_signature(message, certificate, signature, &self.provider.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        if self.roots.is_none() {
            return Ok(HandshakeSignatureValid::assertion());
        }
        verify_tls13_signature(message, certificate, signature, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}
