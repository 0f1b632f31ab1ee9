//! A connection to a server: one statement, one answer.

use std::io::ErrorKind;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

use mysql_common::constants::StatusFlags;
use mysql_common::io::ParseBuf;
use mysql_common::proto::codec::error::PacketCodecError;
use mysql_common::proto::sync_framed::MySyncFramed;
use rustix::event::PollFlags;

use super::failure::Trouble;
use super::handshake::{self, Session};
use super::options::Options;
use super::transport::{Stream, is_ready};

/// What begins a statement.
const COM_QUERY: u8 = 3;

/// An open connection.
pub struct Connection {
    framed: MySyncFramed<Stream>,
    session: Session,
    /// Of the last answer.
    status: StatusFlags,
    timeout: Duration,
}

/// What a server answers.
#[derive(Debug, Default)]
pub struct Answer {
    pub rows: Vec<Vec<Option<Vec<u8>>>>,
    pub affected: u64,
}

impl Answer {
    /// A column of the first row.
    pub fn value(&self, column: usize) -> Option<&[u8]> {
        self.rows.first()?.get(column)?.as_deref()
    }

    /// A column of the first row that is a number.
    pub fn number(&self, column: usize) -> Option<u64> {
        std::str::from_utf8(self.value(column)?).ok()?.parse().ok()
    }
}

impl Connection {
    /// Connects and logs in, all of it within the time of one answer.
    pub fn open(options: &Options) -> Result<Self, Trouble> {
        let (framed, session) = handshake::connect(options, Instant::now() + options.connect_timeout)?;
        let status = session.status;
        Ok(Self { framed, session, status, timeout: options.timeout })
    }

    /// Who we are for the server.
    pub fn id(&self) -> u64 {
        self.session.id
    }

    /// Whether it is MariaDB, and not MySQL.
    pub fn is_mariadb(&self) -> bool {
        self.session.is_mariadb
    }

    /// Whether the server has said something unasked: it has closed the connection, or is about to.
    pub fn is_stale(&self) -> bool {
        is_ready(self.framed.get_ref().as_fd(), PollFlags::IN, Duration::ZERO).unwrap_or(true)
    }

    /// Becomes readable when there may be an answer.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.framed.get_ref().as_fd()
    }

    /// Sends a statement and waits for its answer.
    pub fn ask(&mut self, statement: &str) -> Result<Answer, Trouble> {
        self.send(statement)?;
        let answer = self.answer()?;
        // Each statement is to be a transaction of its own. A server's `init_connect` may have switched that off since we have
        // logged in; switching it on ends the transaction that this statement has begun.
        if !self.status.contains(StatusFlags::SERVER_STATUS_AUTOCOMMIT) {
            let unclear = |_| Trouble::Broken("the server does not end the transaction".to_owned());
            self.send("SET autocommit = 1").and_then(|()| self.answer()).map_err(unclear)?;
        }
        Ok(answer)
    }

    /// Sends a statement.
    pub fn send(&mut self, statement: &str) -> Result<(), Trouble> {
        self.framed.get_mut().wire().deadline = Instant::now() + self.timeout;
        self.framed.codec_mut().reset_seq_id();
        let packet = [&[COM_QUERY], statement.as_bytes()].concat();
        Ok(self.framed.send(&mut &*packet)?)
    }

    /// The answer to what was sent, if it is there already.
    pub fn answer_if_there(&mut self) -> Result<Option<Answer>, Trouble> {
        let mut packet = Vec::new();
        self.framed.get_mut().wire().deadline = Instant::now();
        match self.framed.next_packet(&mut packet) {
            Ok(true) => {}
            Ok(false) => return Err(ended()),
            Err(PacketCodecError::Io(error)) if error.kind() == ErrorKind::TimedOut => return Ok(None),
            Err(error) => return Err(error.into()),
        }
        self.framed.get_mut().wire().deadline = Instant::now() + self.timeout;
        self.rest(&packet).map(Some)
    }

    fn answer(&mut self) -> Result<Answer, Trouble> {
        let first = packet(&mut self.framed)?;
        self.rest(&first)
    }

    /// The answer that begins with this packet.
    fn rest(&mut self, first: &[u8]) -> Result<Answer, Trouble> {
        let mut columns = match first {
            [0, ..] => {
                let mut rest = ParseBuf(&first[1..]);
                let affected = rest.checked_eat_lenenc_int().ok_or_else(garbled)?;
                rest.checked_eat_lenenc_int().ok_or_else(garbled)?;
                self.status = StatusFlags::from_bits_truncate(rest.checked_eat_u16_le().ok_or_else(garbled)?);
                return Ok(Answer { affected, ..Answer::default() });
            }
            // It asks for a file of ours, which we have not said that we give.
            [0xfb, ..] | [] => return Err(garbled()),
            _ => ParseBuf(first).checked_eat_lenenc_int().ok_or_else(garbled)?,
        };
        // As many as the server has announced, and what ends them.
        while columns > 0 {
            packet(&mut self.framed)?;
            columns -= 1;
        }
        packet(&mut self.framed)?;
        let mut answer = Answer::default();
        // Ends with the rows, or the deadline.
        loop {
            let packet = packet(&mut self.framed)?;
            if let [0xfe, end @ ..] = &*packet
                && end.len() < 8
            {
                // The number of warnings stands before it.
                if let [_, _, low, high, ..] = end {
                    self.status = StatusFlags::from_bits_truncate(u16::from_le_bytes([*low, *high]));
                }
                return Ok(answer);
            }
            answer.rows.push(row(&packet).ok_or_else(garbled)?);
        }
    }
}

/// The next packet that is no error.
pub fn packet(framed: &mut MySyncFramed<Stream>) -> Result<Vec<u8>, Trouble> {
    let mut packet = Vec::new();
    if !framed.next_packet(&mut packet)? {
        return Err(ended());
    }
    match &*packet {
        [0xff, low, high, message @ ..] => {
            // Five characters of SQLSTATE stand before it, unless we have not yet said hello.
            let message = if let [b'#', _, _, _, _, _, message @ ..] = message { message } else { message };
            let message = String::from_utf8_lossy(message).into_owned();
            Err(Trouble::Refused { code: u16::from_le_bytes([*low, *high]), message })
        }
        [] => Err(garbled()),
        _ => Ok(packet),
    }
}

pub fn garbled() -> Trouble {
    Trouble::Broken("what the server says is not understood".to_owned())
}

fn ended() -> Trouble {
    Trouble::Broken("the server has closed the connection".to_owned())
}

/// A row in text.
fn row(packet: &[u8]) -> Option<Vec<Option<Vec<u8>>>> {
    let mut rest = ParseBuf(packet);
    let mut row = Vec::new();
    while !rest.is_empty() {
        if rest.0.first() == Some(&0xfb) {
            rest.skip(1);
            row.push(None);
        } else {
            row.push(Some(rest.checked_eat_lenenc_str()?.to_vec()));
        }
    }
    Some(row)
}
