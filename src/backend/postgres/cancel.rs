//! Ends a statement whose answer nobody waits for any more.
//!
//! While it runs one, and so while it waits for a lock of somebody's, a server does not notice that its client is gone. Everybody who
//! asks again in a new session would leave another process behind, until the server has none left, for others either. So, before
//! a session is given up, the server is asked to cancel what it does there: over another connection, as the protocol has it.
//! A pooler passes that on to whichever session the statement is in, but only as long as its own client is there.
//!
//! Why not `lock_timeout` or `statement_timeout`: behind a pooler, they can be set neither at the beginning of a session
//! (`PgBouncer` refuses it) nor later without another round trip, or for others who get the same session.
//!
//! Whether it was cancelled is not asked: a write that was not answered may have been done.

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};
use tokio::time::timeout;
use tokio_postgres::tls::{MakeTlsConnect, TlsConnect};
use tokio_postgres_rustls::MakeRustlsConnect;

use super::connect::{Wire, offers_tls};
use super::failures;
use super::options::SslMode;
use super::session::Key;
use crate::backend::remote::Failure;

/// Whether a write can be cancelled, as a column of another statement.
///
/// A commit that waits for a synchronous standby is over for all others when it is cancelled: they see it, as we do when we ask
/// again, although a failover would forget it, and then two would hold a lock. Without such a standby, a commit waits for nobody.
pub const IS_SAFE: &str = "\
(current_setting('synchronous_standby_names', true) = '' AND NOT pg_catalog.pg_is_in_recovery())";

/// What a request begins with: its length and its number; the session's key follows.
const CANCEL_REQUEST: [u8; 8] = [0, 0, 0, 16, 0x04, 0xd2, 0x16, 0x2e];

/// It must not cost as much as the answer that did not come: of the time for that, this part, and no more than this.
const PART: u32 = 5;
const LIMIT: Duration = Duration::from_secs(1);

/// Where a session was reached, among all that its address may stand for.
pub enum Place {
    /// A socket of this machine.
    Local(PathBuf),
    /// A server of the network.
    Remote(SocketAddr),
}

/// How a session is encrypted.
pub struct Encryption {
    /// What does it.
    pub connector: MakeRustlsConnect,
    /// Whom it is with.
    pub name: String,
    /// Whether the server is not asked first whether it can do that.
    pub is_direct: bool,
}

/// The way to a session's server, and how the session is encrypted if it is.
pub struct Canceller {
    /// Where it is.
    pub place: Place,
    /// `None` if it is not encrypted. Who could listen would else learn how to cancel.
    pub encryption: Option<Encryption>,
}

impl Canceller {
    /// Cancels what the session with this key does, which was to be answered within `limit`, if that can be done soon.
    pub async fn cancel(&self, key: Option<Key>, limit: Duration) {
        // Without one, it cannot be asked.
        let Some(key) = key else { return };
        match timeout((limit / PART).min(LIMIT), self.send(key)).await {
            Ok(Ok(())) => tracing::debug!("cancelled what is not answered in time"),
            Ok(Err(failure)) => tracing::debug!("cannot cancel what is not answered in time: {}", failure.why),
            Err(_) => tracing::debug!("cannot cancel what is not answered in time: nor is that"),
        }
    }

    async fn send(&self, key: Key) -> Result<(), Failure> {
        let cannot = |error: io::Error| failures::of_system(&error);
        let mut wire: Wire = match &self.place {
            Place::Local(path) => Box::new(UnixStream::connect(path).await.map_err(cannot)?),
            Place::Remote(address) => Box::new(TcpStream::connect(address).await.map_err(cannot)?),
        };
        let Some(Encryption { connector, name, is_direct }) = &self.encryption else {
            return ask(wire, key).await.map_err(cannot);
        };
        if !is_direct {
            offers_tls(&mut wire, SslMode::Require).await?;
        }
        let connector = match MakeTlsConnect::<Wire>::make_tls_connect(&mut connector.clone(), name) {
            Ok(connector) => connector,
            Err(never) => match never {},
        };
        ask(connector.connect(wire).await.map_err(cannot)?, key).await.map_err(cannot)
    }
}

/// Returns when the other end has closed the connection. That is its only answer: it has done it, or passed it on.
///
/// tokio-postgres ends its half of the connection first. A pooler may take that for a client that is gone, and pass nothing on;
/// `PgBouncer` 1.18 even dies of it.
async fn ask(mut wire: impl AsyncRead + AsyncWrite + Unpin, key: Key) -> io::Result<()> {
    let request: Vec<u8> = CANCEL_REQUEST.into_iter().chain(key).collect();
    wire.write_all(&request).await?;
    wire.flush().await?;
    match wire.read(&mut [0]).await {
        Ok(0) => Ok(()),
        Ok(_) => Err(io::ErrorKind::InvalidData.into()),
        // rustls wants to be told that it is the end, and it was not.
        Err(error) if matches!(error.kind(), io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset) => Ok(()),
        Err(error) => Err(error),
    }
}
