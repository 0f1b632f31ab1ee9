//! TLS as the clients of MySQL and MariaDB mean it, by `ssl_mode`.

use std::sync::Arc;

use rustls::pki_types::ServerName;
use rustls::{ClientConnection, StreamOwned};

use super::super::network::tls::{self, Roots, Trust, Words};
use super::super::remote::Failure;
use super::failure::Trouble;
use super::options::{Options, TlsMode};
use super::transport::{Stream, Wire};
use crate::printable;

/// What drivers call the options.
pub const WORDS: Words = Words {
    roots: "`ssl_ca` names the file with the certificate that has signed the server's, or with that one itself; \
            `ssl_mode=REQUIRED` encrypts without looking",
    key: "it has to be a PEM file without a passphrase, which `ssl_key` names",
};

/// Speaks TLS from here on.
pub fn secure(wire: Wire, host: &str, options: &Options) -> Result<Stream, Trouble> {
    let roots = options.authority.clone().map_or(Roots::System, Roots::File);
    let trust = match options.tls {
        TlsMode::VerifyCa => Trust::Signed(Some(&roots)),
        TlsMode::VerifyIdentity => Trust::SignedForHost(Some(&roots)),
        TlsMode::Disabled | TlsMode::Preferred | TlsMode::Required => Trust::Anybody,
    };
    let own = options.certificate.as_deref();
    // Both may be in one file.
    let own = own.map(|certificate| (certificate, options.private_key.as_deref().unwrap_or(certificate)));
    let mut config = tls::client(trust, own, &WORDS).map_err(Trouble::Unusable)?;
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
    let connection = ClientConnection::new(Arc::new(config), name);
    let connection = connection.map_err(|error| Trouble::Unusable(tls::failure(&error, &WORDS)))?;
    let mut stream = StreamOwned::new(connection, wire);
    // Finished here, so that a bad certificate is not found after a password was sent.
    while stream.conn.is_handshaking() {
        stream.conn.complete_io(&mut stream.sock)?;
    }
    Ok(Stream::Secure(Box::new(stream)))
}
