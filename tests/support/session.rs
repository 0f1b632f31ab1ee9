//! A client of PostgreSQL that stays connected.

#![allow(dead_code, reason = "each test binary uses another part of this")]

use std::io::{BufReader, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use crate::support::next_line;
use crate::support::servers::psql_at;

/// A client that stays connected, and takes statements.
pub struct Session {
    pub child: Child,
    stdin: ChildStdin,
    stdout: BufReader<ChildStdout>,
}

impl Session {
    /// Returns when it is connected. `command` is what [`psql_at`] returns, or what runs that
    /// elsewhere.
    pub fn start(mut command: Command) -> Self {
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("it starts");
        let stdin = child.stdin.take().expect("its input");
        let stdout = BufReader::new(child.stdout.take().expect("its output"));
        let mut session = Self { child, stdin, stdout };
        assert_eq!(session.answer(), "connected\n");
        session
    }

    pub fn send(&mut self, sql: &str) {
        // At once: it may end before it has read all of it.
        self.stdin.write_all(format!("{sql};\n").as_bytes()).expect("it reads");
    }

    /// A line, or nothing at its end.
    pub fn answer(&mut self) -> String {
        next_line(&mut self.stdout)
    }

    pub fn code(mut self) -> Option<i32> {
        drop(self.stdin);
        self.child.wait().expect("it ends").code()
    }
}

/// A client that goes on with what it is told.
pub fn session_at(url: &str) -> Command {
    let mut command = psql_at(url, "SELECT 'connected'");
    command.args(["-f", "-"]);
    command
}
