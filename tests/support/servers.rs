//! Database servers for tests, of their own: PostgreSQL, MariaDB and PgBouncer, as Debian has them.
//! Each runs on a port of the loopback interface, as a user without powers, and is gone with the
//! test, its files included.

#![allow(dead_code, reason = "each test binary uses another part of this")]

mod keeper;

use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::OnceLock;

use rustix::process::Signal;

use crate::support::ended;
pub use keeper::Port;
use keeper::{Keeper, Server, copy_template, find_program, make_template};

/// With characters that have to be encoded.
pub const PASSWORD: &str = "hunter2 /@:x";
const ENCODED_PASSWORD: &str = "hunter2%20%2F%40%3Ax";
/// What PostgreSQL keeps of the password, with one round of its hash: the usual 4096 cost each
/// login of a debug build more than all the rest of a command.
const VERIFIER: &str = "SCRAM-SHA-256$1:c2VyaWFsaXplci10ZXN0cw==$ZeeJ8c2juoGEGK2TttaH/ZfBj52c0Uqyt/VqI2UNixE=:tOr1HHqhe8wXcfx8rvYUk6WHn4RBuwdYw0dYbrieMS8=";

/// What may be special about a server.
#[derive(Clone, Copy, Default)]
pub struct Options<'a> {
    /// Another clock, as libfaketime takes it: `+2d`, or `@2030-01-01 00:00:00`, from where it goes
    /// on.
    pub faketime: Option<&'a str>,
    /// Settings by name, the last ones on its command line.
    pub settings: &'a [(&'a str, &'a str)],
    /// Only connections with TLS are let in, except through the socket. See
    /// [`Postgres::certificate`].
    pub is_tls: bool,
}

/// A command line for a server, with another clock if the options ask for one.
fn command_line(keeper: &Keeper, program: &str, options: &Options) -> Vec<String> {
    let mut command = vec!["env".to_owned(), "LC_ALL=C".to_owned()];
    if let Some(clock) = options.faketime {
        set_clock(keeper, clock);
        command.push(format!("LD_PRELOAD={}", faketime_library()));
        command.push(format!("FAKETIME_TIMESTAMP_FILE={}", keeper.path("clock")));
        // Looked at whenever it wants to know the time. Only the calendar's clock is another one,
        // not that for timeouts.
        command
            .extend(["FAKETIME_NO_CACHE=1", "FAKETIME_DONT_FAKE_MONOTONIC=1"].map(str::to_owned));
    }
    command.push(find_program(program));
    command
}

fn set_clock(keeper: &Keeper, clock: &str) {
    // It may be looking.
    keeper.write("clock.new", &format!("{clock}\n"));
    fs::rename(keeper.path("clock.new"), keeper.path("clock")).expect("the clock can be set");
    keeper.give_away();
}

pub fn faketime_library() -> String {
    let dirs =
        fs::read_dir("/usr/lib").expect("there are libraries").flatten().map(|entry| entry.path());
    let found =
        dirs.map(|dir| dir.join("faketime/libfaketimeMT.so.1")).find(|library| library.exists());
    found
        .expect("libfaketime is installed: scripts/test.sh does that")
        .into_os_string()
        .into_string()
        .expect("UTF-8")
}

/// An authority, and a certificate by it for the server.
fn make_certificate(keeper: &mut Keeper) {
    keeper.run(
        "key='-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes'; openssl req -x509 $key \
         -days 2 -subj '/CN=test authority' -keyout authority.key -out authority.crt; openssl req \
         $key -subj /CN=localhost -keyout server.key -out server.csr; echo \
         subjectAltName=DNS:localhost,IP:127.0.0.1 > names; openssl x509 -req -in server.csr -CA \
         authority.crt -CAkey authority.key -days 2 -extfile names -out server.crt",
    );
}

/// The version, in the name of what is kept for other tests. To be counted up when what is in it
/// changes: the recipe.
fn template_name(program: &str, recipe: u32) -> String {
    let version = ended(Command::new(find_program(program)).arg("--version")).stdout;
    let version: String = version
        .chars()
        .map(|one| if one.is_ascii_alphanumeric() || one == '.' { one } else { '-' })
        .collect();
    format!("{program}-{recipe}-{}", version.trim_matches('-'))
}

fn answer(command: &mut Command) -> String {
    let ended = ended(command);
    assert_eq!(ended.code, 0, "{command:?}: {ended:?}");
    ended.stdout
}

/// The answer, if there is one.
fn try_answer(command: &mut Command) -> Option<String> {
    let ended = ended(command);
    (ended.code == 0).then_some(ended.stdout)
}

fn is_answered(mut command: Command) -> bool {
    command.output().is_ok_and(|output| output.status.success())
}

fn loopback(port: u16) -> SocketAddr {
    SocketAddr::from((Ipv4Addr::LOCALHOST, port))
}

/// What all of them can do.
macro_rules! server {
    ($name:ident, $stop:expr) => {
        impl $name {
            pub fn port(&self) -> u16 {
                self.server.port()
            }

            pub fn address(&self) -> SocketAddr {
                loopback(self.port())
            }

            pub fn host_port(&self) -> String {
                self.address().to_string()
            }

            /// Where all of its files are.
            pub fn dir(&self) -> &Path {
                self.server.keeper.dir()
            }

            /// What it has said so far.
            pub fn log(&self) -> String {
                self.server.keeper.log()
            }

            /// A crash: all of its processes are killed, and are gone when this returns.
            pub fn kill(&mut self) {
                self.server.end(Signal::KILL);
            }

            /// Shuts it down in an orderly way, without waiting for clients, and returns when it is
            /// gone.
            pub fn stop(&mut self) {
                self.server.end($stop);
            }

            /// Starts it again, after [`kill`](Self::kill) or [`stop`](Self::stop), where it was;
            /// returns when it answers.
            pub fn restart(&mut self) {
                self.server.restart();
            }

            /// Stops all of its processes: connections stay, without an answer.
            /// [`kill`](Self::kill) works all the same.
            pub fn pause(&self) {
                self.server.pause();
            }

            pub fn resume(&self) {
                self.server.resume();
            }

            /// Sets the clock that [`Options::faketime`] has given it.
            pub fn set_clock(&self, clock: &str) {
                assert!(
                    fs::exists(self.server.keeper.path("clock")).expect("it can be seen"),
                    "it has the machine's clock"
                );
                set_clock(&self.server.keeper, clock);
            }

            /// The certificate that has signed the server's, with [`Options::is_tls`].
            pub fn certificate(&self) -> String {
                self.server.keeper.path("authority.crt")
            }
        }
    };
}

pub mod buckets;
pub mod emulators;

pub struct Postgres {
    server: Server,
}

server!(Postgres, Signal::INT);

impl Postgres {
    pub fn start() -> Self {
        Self::start_with(Options::default())
    }

    pub fn start_with(options: Options) -> Self {
        let mut keeper = Keeper::new();
        let template = template_name("postgres", 2);
        if !copy_template(&keeper, &template) {
            let initdb = find_program("initdb");
            // Small segments of the log, because they are copied for each server.
            keeper.run(&format!(
                "{initdb} --no-sync --username=postgres --auth=trust --no-locale --encoding=UTF8 \
                 --wal-segsize=1 --pgdata=data"
            ));
            let mut first = Self::start_in(keeper, Options::default(), "postgres");
            first.psql_in("postgres", &format!("CREATE ROLE meltano LOGIN PASSWORD '{VERIFIER}'"));
            first.psql_in("postgres", "CREATE DATABASE meltano OWNER meltano");
            first.stop();
            make_template(&first.server.keeper, &template);
            keeper = first.server.keeper;
        }
        if options.is_tls {
            make_certificate(&mut keeper);
        }
        Self::start_in(keeper, options, "meltano")
    }

    /// A copy that follows another server, and only answers questions until it is promoted.
    pub fn standby_of(primary: &Self) -> Self {
        let mut keeper = Keeper::new();
        let (copy, dir, port) =
            (find_program("pg_basebackup"), primary.dir().display(), primary.port());
        keeper.run(&format!(
            "{copy} --no-sync --checkpoint=fast --write-recovery-conf -h '{dir}' -p {port} -U \
             postgres -D data 2>&1"
        ));
        Self::start_in(keeper, Options::default(), "meltano")
    }

    /// Starts it on the data that are there, of which one database is known to be.
    fn start_in(keeper: Keeper, options: Options, database: &str) -> Self {
        let port = Port::reserve();
        let kind = if options.is_tls { "hostssl" } else { "host" };
        keeper.write(
            "hba",
            &format!(
                "local all,replication all trust\n{kind} all all 127.0.0.1/32 scram-sha-256\n"
            ),
        );
        keeper.give_away();
        let mut command = command_line(&keeper, "postgres", &options);
        command.extend([
            "-D".to_owned(),
            keeper.path("data"),
            "-p".to_owned(),
            port.number().to_string(),
        ]);
        let dir = keeper.dir().display().to_string();
        let (hba, certificate, key) =
            (keeper.path("hba"), keeper.path("server.crt"), keeper.path("server.key"));
        let mut settings = vec![
            ("listen_addresses", "127.0.0.1"),
            ("unix_socket_directories", &dir),
            ("hba_file", &hba),
            // Killed processes lose nothing that is written, which only the machine's own crash
            // would.
            ("fsync", "off"),
            ("full_page_writes", "off"),
            ("shared_buffers", "16MB"),
            ("min_wal_size", "2MB"),
        ];
        if options.is_tls {
            settings.extend([
                ("ssl", "on"),
                ("ssl_cert_file", &certificate),
                ("ssl_key_file", &key),
            ]);
        }
        for (name, value) in settings.iter().chain(options.settings) {
            command.extend(["-c".to_owned(), format!("{name}={value}")]);
        }
        let (number, database) = (port.number(), database.to_owned());
        let is_ready = move || is_answered(psql(&dir, number, &database, "SELECT 1"));
        Self { server: Server::start(keeper, port, command, is_ready) }
    }

    pub fn url(&self) -> String {
        url_at(self.address())
    }

    /// The answer to a statement of the superuser, a row per line, which must succeed.
    pub fn psql(&self, sql: &str) -> String {
        self.psql_in("meltano", sql)
    }

    /// The same, where the server may be full.
    pub fn try_psql(&self, sql: &str) -> Option<String> {
        try_answer(&mut psql(
            &self.server.keeper.dir().display().to_string(),
            self.port(),
            "meltano",
            sql,
        ))
    }

    /// The same, in another database.
    pub fn psql_in(&self, database: &str, sql: &str) -> String {
        answer(&mut psql(
            &self.server.keeper.dir().display().to_string(),
            self.port(),
            database,
            sql,
        ))
    }
}

fn client(program: &str) -> Command {
    let mut command = Command::new(find_program(program));
    command.env_clear().stdin(Stdio::null()).env("LC_ALL", "C");
    command
}

/// The superuser's client, through the socket.
fn psql(dir: &str, port: u16, database: &str, sql: &str) -> Command {
    let mut command = client("psql");
    let port = port.to_string();
    command.args([
        "-X",
        "-qAt",
        "-v",
        "ON_ERROR_STOP=1",
        "-h",
        dir,
        "-p",
        &port,
        "-U",
        "postgres",
        "-d",
        database,
        "-c",
        sql,
    ]);
    command
}

/// A client for a URL, as users have it.
pub fn psql_at(url: &str, sql: &str) -> Command {
    let mut command = client("psql");
    command.args(["-X", "-qAt", "-v", "ON_ERROR_STOP=1", "-d", url, "-c", sql]);
    command
}

pub struct MariaDb {
    server: Server,
}

server!(MariaDb, Signal::TERM);

/// Of which there is a copy for each server.
const SMALL_LOG: &str = "--innodb-log-file-size=4M";

impl MariaDb {
    pub fn start() -> Self {
        Self::start_with(Options::default())
    }

    pub fn start_with(options: Options) -> Self {
        let mut keeper = Keeper::new();
        let template = template_name("mariadbd", 1);
        if !copy_template(&keeper, &template) {
            let install = find_program("mariadb-install-db");
            keeper.run(&format!(
                "{install} --no-defaults --datadir=$PWD/data --tmpdir=$PWD \
                 --auth-root-authentication-method=normal --skip-test-db {SMALL_LOG}"
            ));
            let mut first = Self::start_in(keeper, Options::default());
            first.sql_in("mysql", &format!("CREATE USER meltano@'%' IDENTIFIED BY '{PASSWORD}'"));
            first.sql_in("mysql", "CREATE DATABASE meltano; GRANT ALL ON meltano.* TO meltano@'%'");
            first.stop();
            make_template(&first.server.keeper, &template);
            keeper = first.server.keeper;
        }
        if options.is_tls {
            make_certificate(&mut keeper);
        }
        Self::start_in(keeper, options)
    }

    fn start_in(keeper: Keeper, options: Options) -> Self {
        let port = Port::reserve();
        let mut command = command_line(&keeper, "mariadbd", &options);
        let socket = keeper.path("socket");
        command.extend([
            "--no-defaults".to_owned(),
            format!("--datadir={}", keeper.path("data")),
            format!("--tmpdir={}", keeper.dir().display()),
            format!("--socket={socket}"),
            format!("--port={}", port.number()),
        ]);
        // What is committed is written, if not synced: killed processes lose nothing then. With 0
        // they would.
        let settings = [
            "--innodb-flush-log-at-trx-commit=2",
            "--innodb-flush-method=nosync",
            "--innodb-buffer-pool-size=16M",
        ];
        let settings = settings.into_iter().chain([
            "--bind-address=127.0.0.1",
            "--skip-name-resolve",
            "--skip-log-bin",
            SMALL_LOG,
        ]);
        command.extend(settings.map(str::to_owned));
        if options.is_tls {
            command.extend(
                [("cert", "server.crt"), ("key", "server.key")]
                    .map(|(what, name)| format!("--ssl-{what}={}", keeper.path(name))),
            );
            command.push("--require-secure-transport=on".to_owned());
        }
        command.extend(options.settings.iter().map(|(name, value)| format!("--{name}={value}")));
        let is_ready = move || is_answered(mariadb(&socket, "mysql", "SELECT 1"));
        Self { server: Server::start(keeper, port, command, is_ready) }
    }

    pub fn url(&self) -> String {
        format!("mysql://meltano:{ENCODED_PASSWORD}@{}/meltano", self.host_port())
    }

    /// The answer to statements of the superuser, a row per line, which must succeed.
    pub fn sql(&self, sql: &str) -> String {
        self.sql_in("meltano", sql)
    }

    /// The same, where the server may be full.
    pub fn try_sql(&self, sql: &str) -> Option<String> {
        try_answer(&mut mariadb(&self.server.keeper.path("socket"), "meltano", sql))
    }

    fn sql_in(&self, database: &str, sql: &str) -> String {
        answer(&mut mariadb(&self.server.keeper.path("socket"), database, sql))
    }
}

/// Three servers of MariaDB that have the same data, each with all of it (Galera).
pub struct Galera {
    pub nodes: [MariaDb; 3],
    /// For what they say to each other.
    _ports: Vec<[Port; 2]>,
}

impl Galera {
    pub fn start() -> Self {
        let ports: Vec<_> = (0..3).map(|_| [(); 2].map(|()| Port::reserve())).collect();
        let at = |port: &Port| loopback(port.number()).to_string();
        let all: Vec<_> = ports.iter().map(|[group, _]| at(group)).collect();
        // The first one begins alone.
        let others = format!("gcomm://{}", all.join(","));
        let addresses = ["gcomm://", &others, &others];
        let nodes = addresses.into_iter().zip(&ports).map(|(address, [group, increments])| {
            let options = format!(
                "gmcast.listen_addr=tcp://{};ist.recv_addr={};gcache.size=4M",
                at(group),
                at(increments)
            );
            // By rsync, which does not take a port that is reserved.
            let whole = at(&Port::reserve());
            let settings = [
                ("wsrep-on", "ON"),
                // Where Debian has it.
                ("wsrep-provider", "/usr/lib/galera/libgalera_smm.so"),
                ("wsrep-provider-options", &options),
                ("wsrep-cluster-address", address),
                ("wsrep-node-address", "127.0.0.1"),
                ("wsrep-sst-method", "rsync"),
                ("wsrep-sst-receive-address", &whole),
                ("binlog-format", "ROW"),
                ("innodb-autoinc-lock-mode", "2"),
            ];
            MariaDb::start_with(Options { settings: &settings, ..Options::default() })
        });
        let nodes: Vec<_> = nodes.collect();
        let nodes = nodes.try_into().unwrap_or_else(|_| panic!("there are three"));
        Self { nodes, _ports: ports }
    }
}

/// The superuser's client, through the socket.
fn mariadb(socket: &str, database: &str, sql: &str) -> Command {
    let mut command = client("mariadb");
    command.args(["--no-defaults", "--user=root", "-NB", "--socket", socket, "-e", sql, database]);
    command
}

/// A client as the user, for a server or a proxy at this address.
pub fn mariadb_at(address: SocketAddr, sql: &str) -> Command {
    let mut command = client("mariadb");
    command.args(["--no-defaults", "--protocol=tcp", "--user=meltano", "-NB"]);
    command.args([&format!("--host={}", address.ip()), &format!("--port={}", address.port())]);
    command.args([&format!("--password={PASSWORD}"), "-e", sql, "meltano"]);
    command
}

/// A pool of connections to a PostgreSQL server, in transaction mode: each transaction gets any of
/// them.
pub struct PgBouncer {
    server: Server,
}

server!(PgBouncer, Signal::TERM);

impl PgBouncer {
    /// `pool_size` is how many connections it makes at most.
    pub fn start(postgres: &Postgres, pool_size: u16) -> Self {
        let keeper = Keeper::new();
        let port = Port::reserve();
        let (number, users, to) = (port.number(), keeper.path("users"), postgres.port());
        keeper.write("users", &format!("\"meltano\" \"{VERIFIER}\"\n"));
        keeper.write(
            "ini",
            &format!(
                "[databases]\nmeltano = host=127.0.0.1 port={to}\n[pgbouncer]\nlisten_addr = \
                 127.0.0.1\nlisten_port = {number}\nunix_socket_dir =\nauth_type = \
                 scram-sha-256\nauth_file = {users}\npool_mode = transaction\ndefault_pool_size = \
                 {pool_size}\n"
            ),
        );
        keeper.give_away();
        let mut command = command_line(&keeper, "pgbouncer", &Options::default());
        command.push(keeper.path("ini"));
        let url = url_at(loopback(number));
        Self {
            server: Server::start(keeper, port, command, move || {
                is_answered(psql_at(&url, "SELECT 1"))
            }),
        }
    }

    pub fn url(&self) -> String {
        url_at(self.address())
    }
}

/// The URL of PostgreSQL's database for a server or a proxy at this address.
pub fn url_at(address: SocketAddr) -> String {
    format!("postgresql://meltano:{ENCODED_PASSWORD}@{address}/meltano")
}

/// One for all tests of a program, each of which uses names of its own. It goes when the program
/// does.
pub fn shared_postgres() -> &'static Postgres {
    static SHARED: OnceLock<Postgres> = OnceLock::new();
    SHARED.get_or_init(Postgres::start)
}

pub fn shared_mariadb() -> &'static MariaDb {
    static SHARED: OnceLock<MariaDb> = OnceLock::new();
    SHARED.get_or_init(MariaDb::start)
}
