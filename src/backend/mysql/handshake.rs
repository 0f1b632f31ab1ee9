//! Saying hello: capabilities, TLS, and who we are.

use std::collections::HashMap;
use std::time::Instant;

use mysql_common::auth::plugins::{AuthProc, ChallengeResponsePlugin, Context, Response};
use mysql_common::collations::CollationId;
use mysql_common::constants::{CapabilityFlags, DEFAULT_MAX_ALLOWED_PACKET, StatusFlags};
use mysql_common::io::ParseBuf;
use mysql_common::packets::{AuthPlugin, HandshakePacket, HandshakeResponse, SslRequest};
use mysql_common::proto::MySerialize;
use mysql_common::proto::sync_framed::MySyncFramed;

use super::super::remote::Failure;
use super::connection::{garbled, packet};
use super::failure::Trouble;
use super::options::{Endpoint, Options, TlsMode};
use super::tls;
use super::transport::{Stream, Wire};
use crate::printable;

/// What we can do. No `CLIENT_FOUND_ROWS`: it is the rows that were changed that are counted. No `CLIENT_LOCAL_FILES`: no server
/// gets a file. All of it is said before TLS begins: MariaDB does not listen a second time.
const CAPABILITIES: CapabilityFlags = CapabilityFlags::CLIENT_LONG_PASSWORD
    .union(CapabilityFlags::CLIENT_LONG_FLAG)
    .union(CapabilityFlags::CLIENT_PROTOCOL_41)
    .union(CapabilityFlags::CLIENT_TRANSACTIONS)
    .union(CapabilityFlags::CLIENT_SECURE_CONNECTION)
    .union(CapabilityFlags::CLIENT_CONNECT_WITH_DB)
    .union(CapabilityFlags::CLIENT_PLUGIN_AUTH)
    .union(CapabilityFlags::CLIENT_PLUGIN_AUTH_LENENC_CLIENT_DATA)
    .union(CapabilityFlags::CLIENT_CONNECT_ATTRS);

/// Challenges that any way of logging in has.
const MAX_STEPS: usize = 10;

/// What was agreed on.
pub struct Session {
    pub id: u64,
    pub is_mariadb: bool,
    pub status: StatusFlags,
}

/// Connects and logs in.
pub fn connect(options: &Options, deadline: Instant) -> Result<(MySyncFramed<Stream>, Session), Trouble> {
    let (wire, host) = match &options.endpoint {
        Endpoint::File(path) => (Wire::to_file(path, deadline)?, None),
        Endpoint::Host(host, port) => (Wire::to_host(host, *port, deadline)?, Some(host)),
    };
    let mut framed = MySyncFramed::new(Stream::Plain(wire));
    let hello = packet(&mut framed)?;
    let hello: HandshakePacket<'_> = ParseBuf(&hello).parse(()).map_err(|_| garbled())?;
    if !hello.capabilities().contains(CapabilityFlags::CLIENT_PROTOCOL_41 | CapabilityFlags::CLIENT_SECURE_CONNECTION) {
        return Err(Trouble::Unusable(Failure::permanent("the server is too old")));
    }
    let mut capabilities = CAPABILITIES & (hello.capabilities() | CapabilityFlags::CLIENT_LONG_PASSWORD);
    if let Some(host) = host {
        let is_offered = hello.capabilities().contains(CapabilityFlags::CLIENT_SSL);
        if !is_offered && options.tls > TlsMode::Preferred {
            let failure = Failure::permanent("the server does not offer TLS");
            return Err(Trouble::Unusable(failure.with_hint("without encryption: `ssl_mode=PREFERRED`, which is the default")));
        }
        if is_offered && options.tls > TlsMode::Disabled {
            capabilities |= CapabilityFlags::CLIENT_SSL;
            framed = encrypt(framed, capabilities, host, options)?;
        }
    }
    let plugin = hello.auth_plugin().filter(|plugin| is_known(plugin)).unwrap_or(AuthPlugin::MysqlNativePassword);
    let mut login = Login { options, stream: Traits::of(framed.get_ref(), options), scramble: hello.nonce() };
    let mut procedure = login.procedure(&plugin)?;
    let (first, mut is_over) = login.step(&mut procedure, &hello.nonce())?;
    let answer = HandshakeResponse::new(
        Some(first.unwrap_or_default()),
        (8, 0, 0),
        Some(options.user.as_bytes()),
        Some(options.database.as_bytes()),
        Some(plugin.borrow()),
        capabilities,
        attributes(capabilities),
        u32::try_from(DEFAULT_MAX_ALLOWED_PACKET).unwrap_or(u32::MAX),
    );
    send(&mut framed, &answer)?;
    for _ in 0..MAX_STEPS {
        let packet = packet(&mut framed)?;
        match &*packet {
            [0, rest @ ..] => {
                let session = Session {
                    id: hello.connection_id().into(),
                    is_mariadb: hello.server_version_str().contains("MariaDB"),
                    status: status(rest).unwrap_or(hello.status_flags()),
                };
                return Ok((framed, session));
            }
            [0xfe] => return Err(login.unknown("mysql_old_password")),
            [0xfe, rest @ ..] => {
                let end = rest.iter().position(|byte| *byte == 0).ok_or_else(garbled)?;
                let challenge = rest[end + 1..].strip_suffix(&[0]).unwrap_or(&rest[end + 1..]);
                login.scramble = challenge.to_vec();
                procedure = login.procedure(&AuthPlugin::from_bytes(&rest[..end]))?;
                let (reply, over) = login.step(&mut procedure, challenge)?;
                is_over = over;
                framed.send(&mut &*reply.unwrap_or_default())?;
            }
            more if !is_over => {
                let (reply, over) = login.step(&mut procedure, more.strip_prefix(&[1]).unwrap_or(more))?;
                is_over = over;
                if let Some(reply) = reply {
                    framed.send(&mut &*reply)?;
                }
            }
            _ => return Err(garbled()),
        }
    }
    Err(garbled())
}

/// The rest of the conversation is TLS.
fn encrypt(
    mut framed: MySyncFramed<Stream>,
    capabilities: CapabilityFlags,
    host: &str,
    options: &Options,
) -> Result<MySyncFramed<Stream>, Trouble> {
    let size = u32::try_from(DEFAULT_MAX_ALLOWED_PACKET).unwrap_or(u32::MAX);
    // The same collation as later on: utf8mb4.
    send(&mut framed, &SslRequest::new(capabilities, size, CollationId::UTF8MB4_GENERAL_CI as u8))?;
    let (input, output, codec, stream) = framed.destruct();
    let Stream::Plain(wire) = stream else { return Err(garbled()) };
    // Somebody has said something in clear that we would take for the server's.
    if !input.is_empty() {
        return Err(garbled());
    }
    Ok(MySyncFramed::construct(input, output, codec, tls::secure(wire, host, options)?))
}

fn send(framed: &mut MySyncFramed<Stream>, packet: &impl MySerialize) -> Result<(), Trouble> {
    let mut bytes = Vec::new();
    packet.serialize(&mut bytes);
    Ok(framed.send(&mut &*bytes)?)
}

/// What the list of connections shows beside the user.
fn attributes(capabilities: CapabilityFlags) -> Option<HashMap<String, String>> {
    let attribute = ("program_name".to_owned(), env!("CARGO_PKG_NAME").to_owned());
    capabilities.contains(CapabilityFlags::CLIENT_CONNECT_ATTRS).then(|| HashMap::from([attribute]))
}

/// The session's status, of what follows an OK.
fn status(rest: &[u8]) -> Option<StatusFlags> {
    let mut rest = ParseBuf(rest);
    rest.checked_eat_lenenc_int()?;
    rest.checked_eat_lenenc_int()?;
    rest.checked_eat_u16_le().map(StatusFlags::from_bits_truncate)
}

fn is_known(plugin: &AuthPlugin<'_>) -> bool {
    matches!(
        plugin,
        AuthPlugin::MysqlNativePassword | AuthPlugin::CachingSha2Password | AuthPlugin::Sha256Password | AuthPlugin::Ed25519
    )
}

/// What passwords may be sent over.
#[derive(Clone, Copy)]
struct Traits {
    is_local: bool,
    is_secure: bool,
    is_verified: bool,
}

impl Traits {
    fn of(stream: &Stream, options: &Options) -> Self {
        let is_secure = stream.is_secure();
        Self { is_local: stream.is_local(), is_secure, is_verified: is_secure && options.tls >= TlsMode::VerifyCa }
    }
}

struct Login<'a> {
    options: &'a Options,
    stream: Traits,
    scramble: Vec<u8>,
}

impl Login<'_> {
    fn procedure(&self, plugin: &AuthPlugin<'_>) -> Result<AuthProc, Trouble> {
        // Whoever asks for the password itself has to be known.
        let may_have_all = self.stream.is_local || self.stream.is_verified;
        let is_usable = is_known(plugin) || (matches!(plugin, AuthPlugin::MysqlClearPassword) && may_have_all);
        if !is_usable {
            return Err(self.unknown(&String::from_utf8_lossy(plugin.as_bytes())));
        }
        plugin.init().map_err(|_| garbled())
    }

    /// What to send, if anything, and whether that is all.
    fn step(&self, procedure: &mut AuthProc, challenge: &[u8]) -> Result<(Option<Vec<u8>>, bool), Trouble> {
        match procedure.run(self, challenge) {
            Ok(Response::Next { packet }) => Ok((packet, false)),
            Ok(Response::Last { packet }) => Ok((packet, true)),
            Err(_) => Err(Trouble::Broken("the server asks for the password in a way that is not understood".to_owned())),
        }
    }

    fn unknown(&self, plugin: &str) -> Trouble {
        let user = printable::field(&self.options.user);
        let why = format!("the user `{user}` has to log in by `{}`, which is not supported here", printable::field(plugin));
        let hint = "make a user with a password; `mysql_clear_password` needs `ssl_verify_cert=true`";
        Trouble::Unusable(Failure::permanent(why).with_hint(hint))
    }
}

impl Context for &Login<'_> {
    fn pass(&self) -> &[u8] {
        self.options.password.as_bytes()
    }

    fn is_ipc_transport(&self) -> bool {
        self.stream.is_local
    }

    fn is_tls_transport(&self) -> bool {
        self.stream.is_secure
    }

    fn scramble(&self) -> &[u8] {
        &self.scramble
    }

    fn server_key_pem(&self) -> Option<&[u8]> {
        None
    }
}
