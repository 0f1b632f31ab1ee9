//! Answers that an emulator does not give: those that AWS's documentation has, in place of the emulator's own. Everything else
//! passes.

#![allow(dead_code, reason = "each test binary uses another part of this")]

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

/// On a port of the loopback interface. It answers one request for each connection.
pub struct Injector {
    address: SocketAddr,
    rule: Arc<Mutex<Rule>>,
}

/// What is answered to whom.
#[derive(Default)]
struct Rule {
    /// What has this in it; nothing if it is empty.
    marker: Vec<u8>,
    answer: Vec<u8>,
    /// Whether it is done all the same.
    is_done: bool,
    /// So many times.
    times: usize,
}

impl Injector {
    pub fn before(server: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = listener.local_addr().expect("it has an address");
        let rule = Arc::new(Mutex::new(Rule::default()));
        let shared = Arc::clone(&rule);
        // It lives as long as the test program, as do its clients.
        std::thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let rule = Arc::clone(&shared);
                std::thread::spawn(move || serve(client, server, &rule));
            }
        });
        Self { address, rule }
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Answers so many requests with `marker` in them by an error as DynamoDB's, and does not pass them on.
    pub fn refuse(&self, marker: &[u8], times: usize, status: u16, code: &str, text: &str) {
        self.set(marker, times, false, status, code, text);
    }

    /// Passes so many requests with `marker` in them on, and answers them by an error.
    pub fn do_and_deny(&self, marker: &[u8], times: usize, status: u16, code: &str) {
        self.set(marker, times, true, status, code, "The request processing has failed because of an unknown error");
    }

    fn set(&self, marker: &[u8], times: usize, is_done: bool, status: u16, code: &str, text: &str) {
        let body = format!(r#"{{"__type":"com.amazonaws.dynamodb.v20120810#{code}","message":"{text}"}}"#);
        let answer = format!(
            "HTTP/1.1 {status} Injected\r\nContent-Type: application/x-amz-json-1.0\r\nContent-Length: {}\r\n\
             Connection: close\r\n\r\n{body}",
            body.len()
        );
        *self.rule.lock().expect("no panic") = Rule { marker: marker.to_owned(), answer: answer.into_bytes(), is_done, times };
    }

    /// Lets everything pass.
    pub fn mend(&self) {
        self.rule.lock().expect("no panic").times = 0;
    }

    /// How many more requests are to be answered.
    pub fn left(&self) -> usize {
        self.rule.lock().expect("no panic").times
    }
}

/// One request. Whoever goes away in between is not told anything.
fn serve(mut client: TcpStream, server: SocketAddr, rule: &Mutex<Rule>) -> Option<()> {
    let (head, body) = request(&mut client)?;
    let (answer, is_done) = {
        let mut rule = rule.lock().ok()?;
        let whole = [&head[..], &body].concat();
        if rule.times > 0 && whole.windows(rule.marker.len()).any(|window| window == rule.marker) {
            rule.times -= 1;
            (Some(rule.answer.clone()), rule.is_done)
        } else {
            (None, true)
        }
    };
    let mut answered = Vec::new();
    if is_done {
        let mut server = TcpStream::connect(server).ok()?;
        server.write_all(&head).ok()?;
        server.write_all(b"Connection: close\r\n\r\n").ok()?;
        server.write_all(&body).ok()?;
        server.read_to_end(&mut answered).ok()?;
    }
    client.write_all(&answer.unwrap_or(answered)).ok()
}

/// Its head, without the empty line, and its body.
fn request(client: &mut TcpStream) -> Option<(Vec<u8>, Vec<u8>)> {
    let mut bytes = Vec::new();
    let mut buffer = [0; 65536];
    // Ends with the request, or with the client.
    loop {
        if let Some(end) = bytes.windows(4).position(|window| window == b"\r\n\r\n") {
            let head = String::from_utf8_lossy(&bytes[..end]).to_ascii_lowercase();
            let length = head.split("content-length: ").nth(1)?.split("\r\n").next()?.parse::<usize>().ok()?;
            if bytes.len() >= end + 4 + length {
                return Some((bytes[..end + 2].to_vec(), bytes[end + 4..].to_vec()));
            }
        }
        match client.read(&mut buffer) {
            Ok(0) | Err(_) => return None,
            Ok(count) => bytes.extend_from_slice(&buffer[..count]),
        }
    }
}
