//! Object stores, as servers of tests: moto for S3, Azurite for Azure. For Google's there is none
//! that keeps to conditions.

use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::process::Command;
use std::sync::OnceLock;

use rustix::process::Signal;

use super::emulators::{Moto, installed, node, start};
use super::keeper::{Keeper, Port, Server};
use super::{answer, loopback, set_clock};

/// Where locks of tests are.
pub const BUCKET: &str = "locks";

/// Azurite's own account, which is in its documentation.
pub const ACCOUNT: &str = "devstoreaccount1";
pub const ACCOUNT_KEY: &str =
    "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw==";

/// A secret that no message may hold, with what people's secrets have.
pub const SECRET: &str = "hunter2/x+y";

/// The answer of S3 to a client that it does not ask for a proof.
pub fn asked(address: SocketAddr, method: &str, path: &str, body: &str) -> String {
    asked_with(address, &format!("{method} {path}"), "s3", "text/plain", body)
}

/// The answer to an administrator of AWS, while permissions are not enforced.
pub fn asked_as_administrator(
    address: SocketAddr,
    service: &str,
    path: &str,
    form: &str,
) -> String {
    asked_with(address, &format!("POST {path}"), service, "application/x-www-form-urlencoded", form)
}

fn asked_with(address: SocketAddr, what: &str, service: &str, kind: &str, body: &str) -> String {
    let credential = format!(
        "Credential=AKIATEST/20260101/us-east-1/{service}/aws4_request, SignedHeaders=host, \
         Signature=0"
    );
    let headers =
        format!("Authorization: AWS4-HMAC-SHA256 {credential}\r\nContent-Type: {kind}\r\n");
    let mut stream = TcpStream::connect(address).expect("it listens");
    let length = body.len();
    let question = format!(
        "{what} HTTP/1.0\r\nHost: {address}\r\n{headers}Content-Length: {length}\r\n\r\n{body}"
    );
    stream.write_all(question.as_bytes()).expect("it takes the question");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("it answers");
    answer
}

/// S3 at this address, as users have it.
pub fn s3_url_at(address: SocketAddr) -> String {
    format!(
        "s3://AKIATEST:{SECRET}@{BUCKET}/meltano/state?region=us-east-1&endpoint=http://{address}"
    )
}

pub fn azure_url_at(address: SocketAddr) -> String {
    let endpoint = format!("http://{address}/{ACCOUNT}");
    format!(
        "azure://{BUCKET}/meltano/state?account={ACCOUNT}&account_key={ACCOUNT_KEY}&endpoint={endpoint}"
    )
}

/// S3 with a bucket for locks in it.
pub fn start_s3() -> Moto {
    let moto = Moto::start();
    make_bucket(moto.address(), BUCKET);
    moto
}

/// The same with TLS.
pub fn start_s3_with_tls() -> Moto {
    let moto = Moto::start_with_tls();
    let script = "import ssl, sys, urllib.request as r; r.urlopen(r.Request(sys.argv[1], \
                  method='PUT'), context=ssl.create_default_context(cafile=sys.argv[2]), \
                  timeout=20)";
    let bucket = format!("https://{}/{BUCKET}", moto.address());
    answer(Command::new("python3").args(["-c", script, &bucket, &moto.certificate()]));
    moto
}

pub fn make_bucket(address: SocketAddr, name: &str) {
    let made = asked(address, "PUT", &format!("/{name}"), "");
    assert!(made.contains("200 OK"), "{made}");
}

/// Azure Blob Storage, which keeps nothing when it ends.
pub struct Azurite {
    server: Server,
}

server!(Azurite, Signal::KILL);

impl Azurite {
    /// With a container for locks in it.
    pub fn start() -> Self {
        let keeper = Keeper::new();
        let port = Port::reserve();
        let number = port.number().to_string();
        let (program, home) =
            (installed("azurite/node_modules/azurite/dist/src/blob/main.js"), keeper.path("."));
        let options = [
            "--blobHost",
            "127.0.0.1",
            "--blobPort",
            &number,
            "--inMemoryPersistence",
            "--silent",
            "--disableTelemetry",
        ];
        let words = ["env", &format!("HOME={home}"), &format!("--chdir={home}"), &node(), &program];
        let command = words.into_iter().chain(options).map(str::to_owned).collect();
        let azurite = Self { server: start(keeper, port, command) };
        azurite.tool(&["make", &number, BUCKET]);
        azurite
    }

    pub fn url(&self) -> String {
        azure_url_at(self.address())
    }

    /// A shared access signature for the container that allows what these letters say.
    pub fn signature(&self, letters: &str) -> String {
        self.tool(&["sign", &self.port().to_string(), BUCKET, letters]).trim().to_owned()
    }

    fn tool(&self, arguments: &[&str]) -> String {
        let tool = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/support/servers/azure.py");
        answer(Command::new("python3").arg(tool).args(arguments))
    }
}

/// One for all tests of a program, each of which uses names of its own. It goes when the program
/// does.
pub fn shared_s3() -> &'static Moto {
    static SHARED: OnceLock<Moto> = OnceLock::new();
    SHARED.get_or_init(start_s3)
}

pub fn shared_azure() -> &'static Azurite {
    static SHARED: OnceLock<Azurite> = OnceLock::new();
    SHARED.get_or_init(Azurite::start)
}
