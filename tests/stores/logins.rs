//! Where the address of a database leads, and with which words: by a server that takes down each
//! login, and refuses it.

use std::ffi::OsStr;
use std::io::{self, Read, Write};
use std::net::TcpListener;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;
use std::time::Duration;

use serializer::store::address::{StoreSettings, StoreUrl};
use serializer::store::open_store;
use serializer::store::seam::Key;

use crate::support::ended;
use crate::support::servers::Port;
use crate::support::stores::Store;

/// What a client has asked for.
#[derive(Debug, Default, PartialEq)]
struct Login {
    asks_for_tls: bool,
    user: String,
    database: String,
    password: String,
}

/// A server at a port of this machine, and at a socket with the same number.
struct Notary {
    port: u16,
    /// A port at which no server listens.
    closed: Port,
    directory: tempfile::TempDir,
    logins: Receiver<Login>,
}

impl Notary {
    fn start() -> Self {
        let tcp = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let (port, closed) = (tcp.local_addr().expect("an address").port(), Port::reserve());
        let directory = tempfile::tempdir().expect("a directory");
        let socket = UnixListener::bind(directory.path().join(format!(".s.PGSQL.{port}")));
        let (socket, (sender, logins)) = (socket.expect("a socket"), channel());
        let of_socket = sender.clone();
        thread::spawn(move || tcp.incoming().flatten().for_each(|one| note(one, &sender)));
        thread::spawn(move || socket.incoming().flatten().for_each(|one| note(one, &of_socket)));
        Self { port, closed, directory, logins }
    }

    /// The address with the places of this server, and of none.
    fn at(&self, url: &str) -> String {
        let directory = self.directory.path().display().to_string();
        let url = url.replace("PORT", &self.port.to_string());
        let url = url.replace("DIR", &directory.replace('/', "%2F"));
        url.replace("CLOSED", &self.closed.number().to_string())
    }

    /// The login of this program with an address. `None` if it does not log in, and why.
    fn login(&self, url: &str, file: Option<&Path>) -> (Option<Login>, String) {
        let why = answer(&self.at(url), file).expect_err(url);
        // Without its column for the queue, a statement is tried again.
        (self.logins.try_iter().last(), why)
    }
}

/// Whether a database can be used, or why not.
pub fn answer(url: &str, file: Option<&Path>) -> Result<(), String> {
    let settings = StoreSettings {
        url: StoreUrl::parse(url).expect(url),
        password_file: file.map(Path::to_owned),
        timeout: Duration::from_secs(60),
    };
    let mut store = open_store(&settings).map_err(|error| error.why)?;
    store.get(&Key::lock(OsStr::new("a"))).map(drop).map_err(|failure| failure.why)
}

/// Takes down a login by PostgreSQL's protocol, without TLS.
fn note(mut client: impl Read + Write, to: &Sender<Login>) {
    let mut login = Login::default();
    let mut begun = |client: &mut (dyn ReadWrite + '_)| -> io::Result<()> {
        let mut head = [0; 8];
        client.read_exact(&mut head)?;
        if head[4..] == 80_877_103_u32.to_be_bytes() {
            login.asks_for_tls = true;
            client.write_all(b"N")?;
            client.read_exact(&mut head)?;
        }
        let length = u32::from_be_bytes([head[0], head[1], head[2], head[3]]);
        let words = text(client, length - 8)?;
        let mut words = words.split('\0');
        while let (Some(name), Some(value)) = (words.next(), words.next()) {
            match name {
                "user" => login.user = value.to_owned(),
                "database" => login.database = value.to_owned(),
                _ => {}
            }
        }
        client.write_all(b"R\0\0\0\x08\0\0\0\x03")?;
        let mut head = [0; 5];
        client.read_exact(&mut head)?;
        let length = u32::from_be_bytes([head[1], head[2], head[3], head[4]]);
        login.password = text(client, length - 4)?.trim_end_matches('\0').to_owned();
        Ok(())
    };
    if begun(&mut client).is_ok() {
        to.send(login).expect("the test waits");
        let refusal = b"SERROR\0VERROR\0C28P01\0Mnot here\0\0";
        let length = u32::try_from(refusal.len() + 4).expect("it is short").to_be_bytes();
        let _ = client.write_all(&[b"E", &length[..], refusal].concat());
    }
}

trait ReadWrite: Read + Write {}
impl<T: Read + Write> ReadWrite for T {}

fn text(client: &mut (dyn ReadWrite + '_), length: u32) -> io::Result<String> {
    let mut bytes = vec![0; length as usize];
    client.read_exact(&mut bytes)?;
    Ok(String::from_utf8(bytes).expect("a text"))
}

#[test]
fn servers_are_named_in_all_usual_ways() {
    let notary = Notary::start();
    for url in [
        "postgres://u@127.0.0.1:PORT/db",
        "postgresql+psycopg2://u@127.0.0.1:PORT/db",
        "postgres://u@127.0.0.1:CLOSED,[::1]:CLOSED,127.0.0.1:PORT/db",
        "postgres://u@DIR:PORT/db",
        "postgres://u@h:PORT/db?host=DIR",
        "postgres://u@/db?host=127.0.0.1,127.0.0.1&port=CLOSED,PORT",
        "postgres://u@/db?host=127.0.0.1:CLOSED&host=127.0.0.1:PORT",
        "postgres://u@/db?host=127.0.0.2,127.0.0.1&port=PORT",
    ] {
        let (login, why) = notary.login(url, None);
        assert!(login.is_some_and(|login| login.user == "u"), "{url}: {why}");
    }
    for (url, place) in [
        ("postgres://u@:CLOSED/db", "`/var/run/postgresql:CLOSED`"),
        ("postgres://u@127.0.0.9/db", "`127.0.0.9:5432`"),
        ("postgres://u@[::1]:CLOSED/db", "`::1:CLOSED`"),
        ("mysql+pymysql://me@127.0.0.9:CLOSED/meta", "`127.0.0.9:CLOSED`"),
        ("mysql://me@/meta?host=127.0.0.9&port=CLOSED", "`127.0.0.9:CLOSED`"),
        ("mysql://me@127.0.0.9/meta", "`127.0.0.9:3306`"),
        ("mysql://me@:CLOSED/meta", "`localhost:CLOSED`"),
        ("mysql://me@[::1]:CLOSED/meta", "`::1:CLOSED`"),
        ("mysql://me@db/meta?unix_socket=/nonexistent/a@b.sock", "`/nonexistent/a@b.sock:3306`"),
    ] {
        let (login, why) = notary.login(url, None);
        assert!(login.is_none() && why.contains(&notary.at(place)), "{url}: {why}");
    }
}

#[test]
fn users_databases_and_passwords_are_read_as_they_stand_and_encoded() {
    let notary = Notary::start();
    let file = tempfile::NamedTempFile::new().expect("a file");
    std::fs::write(file.path(), "  in the file \r\nnot this\n").expect("it can be written");
    let at = "127.0.0.1:PORT";
    for (url, user, password, database) in [
        (format!("postgres://u:p@{at}/db"), "u", "p", "db"),
        (format!("postgres://u@{at}"), "u", "  in the file ", "u"),
        (format!("postgres://u:@{at}/db"), "u", "  in the file ", "db"),
        (format!("postgres://u%40x:p%2Fq%3A%25@{at}/d%20b"), "u@x", "p/q:%", "d b"),
        (format!("postgres://u:p@q/r:s#t+100%@{at}/d+b"), "u", "p@q/r:s#t+100%", "d+b"),
        (format!("postgres://u:x?y@{at}/db"), "u", "x?y", "db"),
        (format!("postgres://me@corp:p@ss#a%@{at}/db?charset=a@b"), "me@corp", "p@ss#a%", "db"),
        (format!("postgres://{at}/db?user=u&password=p%26@q+"), "u", "p&@q+", "db"),
        (format!("postgres://{at}/?database=db&user=u"), "u", "  in the file ", "db"),
    ] {
        let (login, why) = notary.login(&url, Some(file.path()));
        let login = login.unwrap_or_else(|| panic!("{url}: {why}"));
        let found = (login.user.as_str(), login.password.as_str(), login.database.as_str());
        assert_eq!(found, (user, password, database), "{url}");
    }
    let unreadable = answer("mysql://u@h/db", Some(Path::new("/nonexistent")));
    assert!(unreadable.is_err_and(|why| why.contains("`/nonexistent`")));
}

#[test]
fn what_an_address_of_postgres_leaves_out_comes_from_the_environment() {
    let notary = Notary::start();
    let port = notary.port.to_string();
    let [bare, named] =
        ["postgres://127.0.0.1:PORT", "postgres:///db"].map(|url| Store::at(&notary.at(url)));
    assert_eq!(ended(bare.serializer(&["status"]).env("USER", "me")).code, 1);
    let login = notary.logins.try_iter().last().expect("a login");
    assert_eq!((login.user.as_str(), login.database.as_str()), ("me", "me"));
    // Files are not looked at without TLS.
    let mut command = named.serializer(&["status"]);
    command.env("PGHOST", "127.0.0.2,127.0.0.1").env("PGPORT", port).env("PGUSER", "eu");
    command.env("PGSSLMODE", "disable").env("PGSSLROOTCERT", "/nonexistent");
    assert_eq!(ended(command.env("PGPASSWORD", "p")).code, 1);
    let (user, password) = ("eu".to_owned(), "p".to_owned());
    let expected = Login { asks_for_tls: false, user, database: "db".to_owned(), password };
    assert_eq!(notary.logins.try_iter().last(), Some(expected));
}

#[test]
fn tls_is_asked_for_unless_the_address_switches_it_off() {
    let notary = Notary::start();
    for (expected, queries) in [
        (true, "charset=utf8mb4&pool_size=3 sslmode=allow requiressl=0 ssl_mode=PREFERRED"),
        (false, "ssl_disabled=true ssl-mode=DISABLED ssl=false sslmode=disable"),
    ] {
        for query in queries.split(' ') {
            let (login, why) =
                notary.login(&format!("postgres://u@127.0.0.1:PORT/db?{query}"), None);
            assert_eq!(login.map(|login| login.asks_for_tls), Some(expected), "{query}: {why}");
        }
    }
}
