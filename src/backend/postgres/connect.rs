//! From an address to a session: looks names up, connects, encrypts, authenticates.

use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::time::Duration;

use rustix::net::sockopt::set_tcp_user_timeout;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};
use tokio::time::timeout;
use tokio_postgres::config::{SslMode as Encrypted, SslNegotiation};
use tokio_postgres::error::SqlState;
use tokio_postgres::tls::MakeTlsConnect;
use tokio_postgres::{Config, Error, NoTls};

use super::cancel::{Canceller, Encryption, Place};
use super::failures;
use super::link::Link;
use super::options::{Host, Options, SslMode, Target};
use super::session::{Ear, Overheard, OverheardTls};
use super::tls;
use crate::backend::network::lookup;
use crate::backend::network::tls::NOT_ENCRYPTED;
use crate::backend::remote::Failure;
use crate::printable;

/// Asks whether the server encrypts: a message without a kind, of this length and number. The answer is one byte.
const SSL_REQUEST: [u8; 8] = [0, 0, 0, 8, 0x04, 0xd2, 0x16, 0x2f];
const SSL_YES: u8 = b'S';
const SSL_NO: u8 = b'N';

/// A connection, of whatever kind.
pub trait Io: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> Io for T {}
/// Without what it is.
pub type Wire = Box<dyn Io>;

/// Why there is no session.
enum Refusal {
    /// Without encryption, or with it, it might have been another answer.
    Otherwise(Failure),
    Anyway(Failure),
}

impl From<Failure> for Refusal {
    fn from(failure: Failure) -> Self {
        Self::Anyway(failure)
    }
}

/// A session with the first server that grants one. Nothing has been done if there is none.
pub async fn connect(options: &Options) -> Result<Link, Failure> {
    // A server that does not answer must leave time for the next one.
    let share = options.connect_timeout / u32::try_from(options.targets.len()).unwrap_or(u32::MAX).max(1);
    let mut failure: Option<Failure> = None;
    for target in &options.targets {
        let tried = timeout(share, connect_to(options, target, share)).await;
        let late = || Failure::transient(format!("no connection within {} s", share.as_secs_f32()));
        match tried.unwrap_or_else(|_| Err(late())) {
            Ok(link) => return Ok(link),
            // If one of them may be back soon, it is worth to try again.
            Err(next) => failure = failure.filter(|failure| failure.cause.passes()).or(Some(next)),
        }
    }
    Err(failure.unwrap_or_else(|| Failure::permanent("the address names no server")))
}

async fn connect_to(options: &Options, target: &Target, share: Duration) -> Result<Link, Failure> {
    let is_local = matches!(target.host, Host::Directories(_)) && target.address.is_none();
    let ways: &[bool] = match options.ssl.mode {
        // Sockets of this machine are not encrypted; libpq does not even ask.
        _ if is_local => &[false],
        SslMode::Disable => &[false],
        SslMode::Allow => &[false, true],
        SslMode::Prefer => &[true, false],
        SslMode::Require | SslMode::VerifyCa | SslMode::VerifyFull => &[true],
    };
    let mut first = None;
    for is_encrypted in ways {
        match connect_so(options, target, *is_encrypted, share).await {
            Ok(mut link) => {
                if options.is_to_be_writable {
                    link.check_writable(options.answer_timeout).await?;
                }
                return Ok(link);
            }
            Err(Refusal::Otherwise(failure)) => first = first.or(Some(failure)),
            Err(Refusal::Anyway(failure)) => return Err(first.unwrap_or(failure)),
        }
    }
    Err(first.unwrap_or_else(|| Failure::permanent("the address names no server")))
}

async fn connect_so(options: &Options, target: &Target, is_encrypted: bool, share: Duration) -> Result<Link, Refusal> {
    let (mut wire, socket, place) = reach(options, target, share).await?;
    let mut config = config(options, target);
    let ear = Ear::default();
    let is_encrypted = is_encrypted && (options.ssl.is_direct || offers_tls(&mut wire, options.ssl.mode).await?);
    if !is_encrypted {
        config.ssl_mode(Encrypted::Disable);
        let session = config.connect_raw(Overheard::new(wire, ear.clone()), NoTls).await;
        let (client, mut connection) = session.map_err(refusal)?;
        let canceller = Canceller { place, encryption: None };
        return Ok(Link::new(client, Box::new(move |context| connection.poll_message(context)), ear, socket, canceller));
    }
    // The question has been asked.
    config.ssl_mode(Encrypted::Require).ssl_negotiation(SslNegotiation::Direct);
    let name = match (&target.host, target.address) {
        (Host::Name(name), _) => name.clone(),
        (Host::Directories(_), address) => address.map(|address| address.to_string()).unwrap_or_default(),
    };
    let mut maker = tls::connector(&options.ssl)?;
    let connector = match MakeTlsConnect::<Wire>::make_tls_connect(&mut maker, &name) {
        Ok(connector) => connector,
        Err(never) => match never {},
    };
    let session = config.connect_raw(wire, OverheardTls::new(connector, ear.clone())).await;
    let (client, mut connection) = session.map_err(refusal)?;
    let encryption = Some(Encryption { connector: maker, name, is_direct: options.ssl.is_direct });
    let canceller = Canceller { place, encryption };
    Ok(Link::new(client, Box::new(move |context| connection.poll_message(context)), ear, socket, canceller))
}

/// `pg_hba.conf` may have lines for encrypted connections, or for others, only.
fn refusal(error: Error) -> Refusal {
    let failure = failures::of(&error, false);
    let is_about_hosts = error.code() == Some(&SqlState::INVALID_AUTHORIZATION_SPECIFICATION);
    let is_about_tls = error.as_db_error().is_none() && failure.why.starts_with(NOT_ENCRYPTED);
    if is_about_hosts || is_about_tls { Refusal::Otherwise(failure) } else { Refusal::Anyway(failure) }
}

/// Whether a server that was told nothing yet encrypts; it is to begin with that at once.
///
/// # Errors
/// When it does not, and has to.
pub async fn offers_tls(wire: &mut Wire, mode: SslMode) -> Result<bool, Failure> {
    let cannot = |error: std::io::Error| failures::of_system(&error);
    wire.write_all(&SSL_REQUEST).await.map_err(cannot)?;
    match wire.read_u8().await.map_err(cannot)? {
        SSL_YES => Ok(true),
        SSL_NO if matches!(mode, SslMode::Allow | SslMode::Prefer) => Ok(false),
        SSL_NO => Err(Failure::permanent("the server does not encrypt connections")
            .with_hint("`?sslmode=prefer` at the end of the address does without if it has to")),
        // So does a server that cannot even make a process for us.
        _ => Err(Failure::transient("the server does not answer as a PostgreSQL server")),
    }
}

/// A connection to the server, on which nothing was said yet.
async fn reach(options: &Options, target: &Target, share: Duration) -> Result<(Wire, OwnedFd, Place), Failure> {
    let name = match (&target.host, target.address) {
        (_, Some(address)) => address.to_string(),
        (Host::Name(name), None) => name.clone(),
        (Host::Directories(directories), None) => {
            let paths = directories.iter().map(|directory| directory.join(format!(".s.PGSQL.{}", target.port)));
            let paths: Vec<_> = paths.collect();
            let path = paths.iter().find(|path| path.exists()).or(paths.first());
            let path = path.map_or(Path::new(""), |path| path);
            let cannot = |error: std::io::Error| with_place(failures::of_system(&error), &printable::path(path));
            let stream = UnixStream::connect(path).await.map_err(cannot)?;
            let socket = stream.as_fd().try_clone_to_owned().map_err(cannot)?;
            return Ok((Box::new(stream), socket, Place::Local(path.to_owned())));
        }
    };
    // Nothing else is to be done meanwhile.
    let addresses = lookup::addresses(&name, target.port, share)?;
    let share = share / u32::try_from(addresses.len()).unwrap_or(u32::MAX).max(1);
    let mut failure = None;
    for address in addresses {
        let connected = timeout(share, TcpStream::connect(address)).await;
        let connected = connected.unwrap_or_else(|_| Err(std::io::ErrorKind::TimedOut.into()));
        match connected.and_then(|stream| Ok((set_up(&stream, options)?, stream))) {
            Ok((socket, stream)) => return Ok((Box::new(stream), socket, Place::Remote(address))),
            Err(error) => failure = failure.or(Some(with_place(failures::of_system(&error), &address.to_string()))),
        }
    }
    Err(failure.unwrap_or_else(|| Failure::permanent(format!("`{}` has no address", printable::field(&name)))))
}

fn with_place(failure: Failure, place: &str) -> Failure {
    Failure { why: format!("cannot connect to `{place}`: {}", failure.why), ..failure }
}

fn set_up(stream: &TcpStream, options: &Options) -> std::io::Result<OwnedFd> {
    stream.set_nodelay(true)?;
    let unconfirmed = u32::try_from(options.unconfirmed.as_millis()).unwrap_or(u32::MAX);
    set_tcp_user_timeout(stream, unconfirmed)?;
    if let Some(keepalive) = options.keepalive {
        keepalive.set(stream)?;
    }
    stream.as_fd().try_clone_to_owned()
}

fn config(options: &Options, target: &Target) -> Config {
    let mut config = Config::new();
    config.user(&options.user).dbname(&options.database).application_name(&options.application_name);
    if let Some(options) = &options.server_options {
        config.options(options);
    }
    if let Some(password) = &target.password {
        config.password(password);
    }
    config.channel_binding(options.channel_binding);
    config
}
