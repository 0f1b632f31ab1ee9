//! A server that passes requests on to another one, and now and then answers itself or changes the
//! request: no emulator does that of its own accord. Answers are those of the documentation of AWS,
//! word for word.

#![allow(dead_code, reason = "each test binary uses another part of this")]

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex, MutexGuard};

pub struct Injector {
    address: SocketAddr,
    shared: Arc<Shared>,
}

struct Shared {
    server: SocketAddr,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    planned: Vec<Planned>,
    /// Headers that are not passed on.
    ignored: Vec<&'static str>,
    /// First lines of what was asked.
    asked: Vec<String>,
    /// Whether DynamoDB is asked for what each question costs.
    is_metered: bool,
    /// What was asked for, and its units.
    costs: Vec<(String, f64)>,
    has_ended: bool,
}

struct Planned {
    /// What it is an answer to: something in the first lines of a question.
    marker: String,
    times: usize,
    answer: String,
    /// Whether the server is asked all the same.
    is_done: bool,
    /// Whether it is asked twice, and its second answer is passed on.
    is_repeated: bool,
}

/// An answer of S3 with an error in it.
pub fn error(status: &str, headers: &str, code: &str, message: &str) -> String {
    let body = format!(
        "<?xml version=\"1.0\" \
         encoding=\"UTF-8\"?>\n<Error><Code>{code}</Code><Message>{message}</Message></Error>"
    );
    format!(
        "HTTP/1.1 {status}\r\n{headers}Content-Length: {}\r\nConnection: close\r\n\r\n{body}",
        body.len()
    )
}

/// An answer of DynamoDB with an error in it.
pub fn dynamodb_error(status: u16, code: &str, message: &str) -> String {
    let body =
        format!(r#"{{"__type":"com.amazonaws.dynamodb.v20120810#{code}","message":"{message}"}}"#);
    let kind = "Content-Type: application/x-amz-json-1.0\r\n";
    format!(
        "HTTP/1.1 {status} Refused\r\n{kind}Content-Length: {}\r\nConnection: close\r\n\r\n{body}",
        body.len()
    )
}

impl Injector {
    pub fn before(server: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = listener.local_addr().expect("an address");
        let shared = Arc::new(Shared { server, state: Mutex::default() });
        let serving = Arc::clone(&shared);
        std::thread::spawn(move || {
            for client in listener.incoming().flatten() {
                if serving.lock().has_ended {
                    return;
                }
                let serving = Arc::clone(&serving);
                // A client that has gone away is none of its business.
                std::thread::spawn(move || drop(serving.serve(&client)));
            }
        });
        Self { address, shared }
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// So many requests with `marker` in their first lines get this answer, and do not reach the
    /// server.
    pub fn refuse(&self, marker: &str, times: usize, answer: &str) {
        let (marker, answer) = (marker.to_owned(), answer.to_owned());
        self.shared.lock().planned.push(Planned {
            marker,
            times,
            answer,
            is_done: false,
            is_repeated: false,
        });
    }

    /// The same, and replaces all that is planned; there is no moment in between.
    pub fn refuse_instead(&self, marker: &str, times: usize, answer: &str) {
        let (marker, answer) = (marker.to_owned(), answer.to_owned());
        self.shared.lock().planned =
            vec![Planned { marker, times, answer, is_done: false, is_repeated: false }];
    }

    /// So many requests with `marker` in their first lines are passed on, and get this answer in
    /// place of the server's.
    pub fn misreport(&self, marker: &str, times: usize, answer: &str) {
        let (marker, answer) = (marker.to_owned(), answer.to_owned());
        self.shared.lock().planned.push(Planned {
            marker,
            times,
            answer,
            is_done: true,
            is_repeated: false,
        });
    }

    /// So many questions with `marker` in their first lines are passed on twice, as by a proxy that
    /// has lost the first answer.
    pub fn repeat(&self, marker: &str, times: usize) {
        let (marker, answer) = (marker.to_owned(), String::new());
        self.shared.lock().planned.push(Planned {
            marker,
            times,
            answer,
            is_done: true,
            is_repeated: true,
        });
    }

    /// Nothing is planned any more.
    pub fn mend(&self) {
        self.shared.lock().planned.clear();
    }

    /// From now on, these headers are not passed on.
    pub fn ignore(&self, headers: &[&'static str]) {
        self.shared.lock().ignored = headers.to_vec();
    }

    /// From now on, DynamoDB is asked for what each question costs, as the program does not.
    pub fn meter(&self) {
        self.shared.lock().is_metered = true;
    }

    /// What each question since this was asked last was, and its units of capacity.
    pub fn take_costs(&self) -> Vec<(String, f64)> {
        std::mem::take(&mut self.shared.lock().costs)
    }

    /// Whether all that was planned has happened.
    pub fn is_through(&self) -> bool {
        self.shared.lock().planned.is_empty()
    }

    /// The first lines of all questions since this was asked last.
    pub fn take_asked(&self) -> Vec<String> {
        std::mem::take(&mut self.shared.lock().asked)
    }
}

impl Drop for Injector {
    fn drop(&mut self) {
        self.shared.lock().has_ended = true;
        // Wakes it up.
        drop(TcpStream::connect(self.address));
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no panic")
    }

    /// One question.
    fn serve(&self, mut client: &TcpStream) -> std::io::Result<()> {
        let mut reader = BufReader::new(client);
        let (mut head, mut length) = (Vec::new(), 0);
        loop {
            let mut line = String::new();
            if reader.read_line(&mut line)? == 0 {
                return Ok(());
            }
            if line.trim_end().is_empty() {
                break;
            }
            let name = line.split(':').next().unwrap_or("").to_ascii_lowercase();
            if name == "content-length" {
                length =
                    line.split(':').nth(1).and_then(|value| value.trim().parse().ok()).unwrap_or(0);
            }
            head.push((name, line));
        }
        let mut body = vec![0; length];
        reader.read_exact(&mut body)?;
        let text: String = head.iter().map(|(_, line)| line.as_str()).collect();
        let (planned, ignored, is_metered) = {
            let mut state = self.lock();
            state
                .asked
                .push(head.first().map(|(_, line)| line.trim_end().to_owned()).unwrap_or_default());
            let at = state.planned.iter().position(|planned| text.contains(&planned.marker));
            let planned = at.map(|at| {
                let planned = &mut state.planned[at];
                planned.times -= 1;
                let told = (planned.answer.clone(), planned.is_done, planned.is_repeated);
                if planned.times == 0 {
                    state.planned.remove(at);
                }
                told
            });
            (planned, state.ignored.clone(), state.is_metered)
        };
        if is_metered {
            let question = String::from_utf8_lossy(&body).into_owned();
            body = question.replacen('{', r#"{"ReturnConsumedCapacity":"TOTAL","#, 1).into_bytes();
            let length = head
                .iter_mut()
                .find(|(name, _)| name == "content-length")
                .expect("it has a length");
            length.1 = format!("Content-Length: {}\r\n", body.len());
        }
        if let Some((answer, false, _)) = &planned {
            return client.write_all(answer.as_bytes());
        }
        let ask = || -> std::io::Result<Vec<u8>> {
            let mut server = TcpStream::connect(self.server)?;
            for (_, line) in head
                .iter()
                .filter(|(name, _)| name != "connection" && !ignored.contains(&name.as_str()))
            {
                server.write_all(line.as_bytes())?;
            }
            server.write_all(b"Connection: close\r\n\r\n")?;
            server.write_all(&body)?;
            let mut answer = Vec::new();
            server.read_to_end(&mut answer)?;
            Ok(answer)
        };
        let mut answer = ask()?;
        match &planned {
            Some((_, _, true)) => answer = ask()?,
            Some((instead, ..)) => answer = instead.clone().into_bytes(),
            None => {}
        }
        if is_metered {
            let action = text
                .split("DynamoDB_20120810.")
                .nth(1)
                .and_then(|rest| rest.split_whitespace().next());
            let answer = String::from_utf8_lossy(&answer);
            let units = answer
                .split(r#""CapacityUnits":"#)
                .nth(1)
                .and_then(|rest| rest.split([',', '}']).next());
            let units = units.and_then(|units| units.parse().ok()).expect("it says what it costs");
            self.lock().costs.push((action.expect("an action").to_owned(), units));
        }
        client.write_all(&answer)?;
        client.shutdown(Shutdown::Both)
    }
}
