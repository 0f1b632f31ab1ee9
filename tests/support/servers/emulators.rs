//! Emulators of cloud stores, as servers of tests: `scripts/emulators.sh` installs them.

use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::process::Command;
use std::sync::OnceLock;

use rustix::process::Signal;

use super::super::PROGRAM;
use super::keeper::{Keeper, Port, Server, find_program};
use super::{loopback, make_certificate, set_clock};

/// Where they are installed.
pub fn installed(path: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/emulators").join(path);
    assert!(path.exists(), "`{}` is not there: scripts/emulators.sh installs it", path.display());
    path.into_os_string().into_string().expect("UTF-8")
}

/// The one of the machine, unless that is too old.
pub(super) fn node() -> String {
    let own = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("target/emulators/node/node_modules/node/bin/node");
    if own.exists() {
        own.into_os_string().into_string().expect("UTF-8")
    } else {
        find_program("node")
    }
}

/// Starts something that answers as soon as it listens.
pub(super) fn start(keeper: Keeper, port: Port, command: Vec<String>) -> Server {
    let address = loopback(port.number());
    Server::start(keeper, port, command, move || TcpStream::connect(address).is_ok())
}

/// DynamoDB, with tables on disk. Its conditions are exact, and its tables take a moment to be
/// made, as in the cloud.
pub struct Dynalite {
    server: Server,
}

server!(Dynalite, Signal::KILL);

impl Dynalite {
    pub fn start() -> Self {
        let keeper = Keeper::new();
        let port = Port::reserve();
        let (number, data) = (port.number().to_string(), keeper.path("data"));
        let program = installed("dynalite/node_modules/dynalite/cli.js");
        let options =
            ["--host", "127.0.0.1", "--port", &number, "--path", &data, "--createTableMs", "100"];
        let command = [node(), program].into_iter().chain(options.map(str::to_owned)).collect();
        Self { server: start(keeper, port, command) }
    }

    pub fn url(&self) -> String {
        dynamodb_at(self.address())
    }
}

/// One for all tests of a program, each of which uses names of its own. It goes when the program
/// does.
pub fn shared_dynalite() -> &'static Dynalite {
    static SHARED: OnceLock<Dynalite> = OnceLock::new();
    SHARED.get_or_init(|| {
        let server = Dynalite::start();
        // With its table: the first command to use it would say that it has made one.
        let made = Command::new(PROGRAM)
            .arg("initialize")
            .env("SERIALIZER_STORE", server.url())
            .output()
            .expect("it runs");
        assert!(made.status.success(), "{made:?}");
        server
    })
}

/// The URL of a table for an emulator or a proxy at this address. Emulators believe any credentials
/// unless they are told not to.
pub fn dynamodb_at(address: SocketAddr) -> String {
    format!(
        "dynamodb://AKIAEXAMPLE:hunter2@serializer-locks?region=eu-west-1&endpoint=http://{address}"
    )
}

/// The answer to a client with all permissions, without a check: its status, headers and body.
fn answer_to(address: SocketAddr, path: &str, service: &str, headers: &str, body: &str) -> String {
    let mut stream = TcpStream::connect(address).expect("it listens");
    let credential = format!(
        "AKIAEXAMPLE/20260101/eu-west-1/{service}/aws4_request, SignedHeaders=host, Signature=0"
    );
    write!(
        stream,
        "POST {path} HTTP/1.0\r\nHost: {address}\r\nX-Amz-Date: \
         20260101T000000Z\r\n{headers}Authorization: AWS4-HMAC-SHA256 \
         Credential={credential}\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    )
    .expect("it reads");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("it answers");
    answer
}

/// The answer of an emulator of DynamoDB to what the program does not ask.
pub fn dynamodb(address: SocketAddr, action: &str, body: &str) -> String {
    let kind = "Content-Type: application/x-amz-json-1.0\r\n";
    answer_to(
        address,
        "/",
        "dynamodb",
        &format!("{kind}X-Amz-Target: DynamoDB_20120810.{action}\r\n"),
        body,
    )
}

/// DynamoDB with permissions, and other services of AWS. It forgets everything when it ends.
pub struct Moto {
    server: Server,
}

server!(Moto, Signal::KILL);

impl Moto {
    pub fn start() -> Self {
        Self::start_in(Keeper::new(), &[])
    }

    /// With a certificate.
    pub fn start_with_tls() -> Self {
        let mut keeper = Keeper::new();
        make_certificate(&mut keeper);
        let files = ["server.crt", "server.key"].map(|name| keeper.path(name));
        Self::start_in(keeper, &files)
    }

    fn start_in(keeper: Keeper, certificate: &[String]) -> Self {
        let port = Port::reserve();
        let number = port.number().to_string();
        // A copy, because the checkout may be unreadable for the server's user.
        keeper.write("moto_server.py", include_str!("moto_server.py"));
        keeper.give_away();
        let words = [
            "env",
            &format!("HOME={}", keeper.dir().display()),
            &installed("moto/bin/python"),
            &keeper.path("moto_server.py"),
        ];
        let words = words.into_iter().chain([number.as_str()]).map(str::to_owned);
        let command = words.chain(certificate.iter().cloned()).collect();
        Self { server: start(keeper, port, command) }
    }

    pub fn url(&self) -> String {
        dynamodb_at(self.address())
    }

    /// Makes a user, and returns an access key and its secret. Permissions do not count until
    /// [`Self::obey_permissions`].
    pub fn user(&self, name: &str) -> (String, String) {
        self.iam("CreateUser", name, "");
        let made = self.iam("CreateAccessKey", name, "");
        let part = |tag: &str| {
            let (_, rest) = made.split_once(&format!("<{tag}>")).expect("a key");
            rest.split('<').next().expect("a text").to_owned()
        };
        (part("AccessKeyId"), part("SecretAccessKey"))
    }

    /// Gives a user these permissions, in place of those from before.
    pub fn permit(&self, name: &str, policy: &str) {
        let encoded: String = policy.bytes().map(|byte| format!("%{byte:02X}")).collect();
        self.iam("PutUserPolicy", name, &format!("&PolicyName=locks&PolicyDocument={encoded}"));
    }

    fn iam(&self, action: &str, user: &str, more: &str) -> String {
        // Moto asks for permissions after so many requests, and takes this for one.
        self.ask_for_permissions_after(1_000_000);
        let kind = "Content-Type: application/x-www-form-urlencoded\r\n";
        let body = format!("Action={action}&Version=2010-05-08&UserName={user}{more}");
        let answer = answer_to(self.address(), "/", "iam", kind, &body);
        assert!(answer.contains("200 OK"), "{answer}");
        answer
    }

    /// From now on, users may do only what a policy permits.
    pub fn obey_permissions(&self) {
        self.ask_for_permissions_after(0);
    }

    fn ask_for_permissions_after(&self, requests: u32) {
        let answer =
            answer_to(self.address(), "/moto-api/reset-auth", "moto", "", &requests.to_string());
        assert!(answer.contains("200 OK"), "{answer}");
    }

    /// As a user with all permissions.
    pub fn dynamodb(&self, action: &str, body: &str) -> String {
        self.ask_for_permissions_after(1_000_000);
        dynamodb(self.address(), action, body)
    }
}
