//! Encryption as libpq has it: `require` and less encrypt and trust everybody; `verify-ca` wants a certificate that comes from one
//! of the roots, `verify-full` one for this host as well.

use tokio_postgres_rustls::MakeRustlsConnect;

use super::options::{Ssl, SslMode};
use crate::backend::network::tls::{self, Trust, Words};
use crate::backend::remote::Failure;

/// What libpq calls the options.
pub const WORDS: Words = Words {
    roots: "`sslrootcert` names a file with the certificate of whoever signed the server's, and with `sslmode=verify-full` it can \
            be `system`, for whom the system trusts; `sslmode=verify-ca` does not look at the name",
    key: "it has to be a PEM file without a passphrase, which `sslkey` names",
};

/// What encrypts connections.
///
/// # Errors
/// When a certificate or key cannot be used.
pub fn connector(ssl: &Ssl) -> Result<MakeRustlsConnect, Failure> {
    let trust = match ssl.mode {
        SslMode::VerifyCa => Trust::Signed(ssl.roots.as_ref()),
        SslMode::VerifyFull => Trust::SignedForHost(ssl.roots.as_ref()),
        _ => Trust::Anybody,
    };
    let own = ssl.own.as_ref().map(|(certificate, key)| (certificate.as_path(), key.as_path()));
    let mut config = tls::client(trust, own, &WORDS)?;
    if ssl.is_direct {
        config.alpn_protocols = vec![b"postgresql".to_vec()];
    }
    Ok(MakeRustlsConnect::new(config))
}
