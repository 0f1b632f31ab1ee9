//! A network between a client and a server that does what networks do: be slow, lose answers,
//! break.

#![allow(dead_code, reason = "each test binary uses another part of this")]

use std::collections::{HashMap, VecDeque};
use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::sockopt::set_socket_linger;

/// A TCP proxy on a port of the loopback interface. What it is told holds when the call returns.
/// Gone when dropped, with its connections.
pub struct Proxy {
    shared: Arc<Shared>,
    acceptor: Option<JoinHandle<()>>,
}

struct Shared {
    listener: TcpListener,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Clone, PartialEq)]
enum Mode {
    Pass,
    Cut,
    BlackHole,
    SwallowAnswers,
    /// The client's bytes to wait for, and whether they are to arrive.
    CutAt(Vec<u8>, bool),
    /// The client's bytes from which on nothing passes.
    HoldFrom(Vec<u8>),
    /// The client's bytes from which on no answer comes back.
    SwallowFrom(Vec<u8>),
    /// The same, but for one answer, which is this one.
    AnswerFrom(Vec<u8>, Vec<u8>),
    End,
}

struct State {
    server: SocketAddr,
    mode: Mode,
    delay: Duration,
    /// The sockets that wake the threads of the connections.
    connections: HashMap<u64, UnixStream>,
    accepted: u64,
    client_bytes: u64,
    is_hit: bool,
}

impl Proxy {
    /// A proxy for the server at this address.
    pub fn to(server: SocketAddr) -> Self {
        let any = || {
            TcpListener::bind("127.0.0.1:0")
                .and_then(|listener| listener.local_addr())
                .expect("a free port")
        };
        // A socket that has not asked for its port by number loses it when it stops listening.
        // Another process may take it in between.
        let listener = (0..100).find_map(|_| TcpListener::bind(any()).ok());
        Self::on(listener.expect("a free port"), server)
    }

    /// A proxy that listens here, be it in another network.
    pub fn on(listener: TcpListener, server: SocketAddr) -> Self {
        let connections = HashMap::new();
        let (mode, delay) = (Mode::Pass, Duration::ZERO);
        let state = Mutex::new(State {
            server,
            mode,
            delay,
            connections,
            accepted: 0,
            client_bytes: 0,
            is_hit: false,
        });
        let shared = Arc::new(Shared { listener, state, changed: Condvar::new() });
        let accepting = Arc::clone(&shared);
        let acceptor = std::thread::spawn(move || accept(&accepting));
        Self { shared, acceptor: Some(acceptor) }
    }

    pub fn addr(&self) -> SocketAddr {
        self.shared.listener.local_addr().expect("it has an address")
    }

    /// Resets all connections, and has new ones refused until [`mend`](Self::mend).
    pub fn cut(&self) {
        self.set(Mode::Cut);
    }

    /// Accepts connections, and leaves it at that: nothing passes, not even the end of a
    /// connection, until [`mend`](Self::mend). Data that was sent arrives then, as in TCP, in
    /// connections with ends that still exist.
    pub fn black_hole(&self) {
        self.set(Mode::BlackHole);
    }

    /// What clients send arrives, and no answer comes back. Connections that have lost something
    /// are reset by [`mend`](Self::mend): there would be a hole in what comes.
    pub fn swallow_answers(&self) {
        self.set(Mode::SwallowAnswers);
    }

    /// New connections lead to another server.
    pub fn lead_to(&self, server: SocketAddr) {
        self.shared.lock().server = server;
    }

    /// Lets everything pass until a client has sent `marker`: that arrives, its answer does not,
    /// and when it has been given the connection is reset. The client cannot know what has
    /// happened. Other connections are not touched, nor are later ones.
    ///
    /// The first answer is what counts: where statements are prepared first, `marker` must be in
    /// what is sent when they are executed, such as the value of a parameter.
    pub fn swallow_answer_then_cut(&self, marker: &[u8]) {
        self.set(Mode::CutAt(marker.to_owned(), true));
    }

    /// Lets everything pass until a client sends `marker`: the end of that does not arrive, and the
    /// connection is reset. Other connections are not touched, nor are later ones.
    pub fn cut_before(&self, marker: &[u8]) {
        self.set(Mode::CutAt(marker.to_owned(), false));
    }

    /// Lets everything pass until a client sends `marker`: from then on, nothing passes until
    /// [`mend`](Self::mend). Other processes have time to act before that arrives.
    pub fn hold_from(&self, marker: &[u8]) {
        self.set(Mode::HoldFrom(marker.to_owned()));
    }

    /// Lets everything pass until a client has sent `marker`, and swallows all answers from then
    /// on, as [`swallow_answers`](Self::swallow_answers) does: other processes have time to act
    /// before the client asks again.
    pub fn swallow_answers_from(&self, marker: &[u8]) {
        self.set(Mode::SwallowFrom(marker.to_owned()));
    }

    /// As [`swallow_answers_from`](Self::swallow_answers_from), but what the client has sent with
    /// `marker` is answered, by `answer` in place of what the server says, which has done it.
    pub fn answer_wrongly_from(&self, marker: &[u8], answer: &[u8]) {
        self.set(Mode::AnswerFrom(marker.to_owned(), answer.to_owned()));
    }

    /// Returns when the marker has come, and has had its effect.
    pub fn wait_until_hit(&self) {
        let is_missing = |state: &mut State| !state.is_hit;
        let waited = self.shared.changed.wait_timeout_while(
            self.shared.lock(),
            Duration::from_secs(30),
            is_missing,
        );
        let is_hit = waited.expect("no panic").0.is_hit;
        assert!(is_hit, "the marker has not come, or has not been answered");
    }

    /// What comes from now on takes so long, in both directions.
    pub fn delay(&self, delay: Duration) {
        self.shared.lock().delay = delay;
    }

    /// Lets everything pass again, in as much time as [`delay`](Self::delay) says.
    pub fn mend(&self) {
        self.set(Mode::Pass);
    }

    /// How many connections there have been.
    pub fn accepted(&self) -> u64 {
        self.shared.lock().accepted
    }

    /// How many bytes clients have sent.
    pub fn client_bytes(&self) -> u64 {
        self.shared.lock().client_bytes
    }

    fn set(&self, mode: Mode) {
        let mut state = self.shared.lock();
        let is_over = |mode: &Mode| matches!(mode, Mode::Cut | Mode::End);
        if is_over(&mode) && !is_over(&state.mode) {
            // It keeps its port, and does not listen.
            rustix::net::shutdown(&self.shared.listener, rustix::net::Shutdown::Read)
                .expect("it listens");
        } else if is_over(&state.mode) && !is_over(&mode) {
            rustix::net::listen(&self.shared.listener, 128).expect("it can listen again");
        }
        state.is_hit &= matches!(
            mode,
            Mode::Pass | Mode::Cut | Mode::BlackHole | Mode::SwallowAnswers | Mode::End
        );
        state.mode = mode;
        self.shared.changed.notify_all();
        for waker in state.connections.values() {
            // One that is full wakes as well.
            let _ = (&mut &*waker).write(&[0]);
        }
        if is_over(&state.mode) {
            drop(
                self.shared
                    .changed
                    .wait_while(state, |state| !state.connections.is_empty())
                    .expect("no panic"),
            );
        }
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.set(Mode::End);
        if let Some(acceptor) = self.acceptor.take() {
            let _ = acceptor.join();
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no panic")
    }
}

fn accept(shared: &Arc<Shared>) {
    loop {
        let accepted = shared.listener.accept();
        let mut state = shared.lock();
        match (accepted, &state.mode) {
            (_, Mode::End) => return,
            (Ok((client, _)), Mode::Cut) => reset(client),
            (Ok((client, _)), _) => {
                let (waker, woken) = UnixStream::pair().expect("a pair of sockets");
                for socket in [&waker, &woken] {
                    socket.set_nonblocking(true).expect("it can be asked");
                }
                state.accepted += 1;
                let number = state.accepted;
                state.connections.insert(number, waker);
                let shared = Arc::clone(shared);
                std::thread::spawn(move || {
                    let is_hit = Connection::new(client, woken).serve(&shared);
                    let mut state = shared.lock();
                    state.connections.remove(&number);
                    state.is_hit |= is_hit;
                    shared.changed.notify_all();
                });
            }
            // It does not listen until it is mended.
            (Err(_), Mode::Cut) => drop(
                shared
                    .changed
                    .wait_while(state, |state| state.mode == Mode::Cut)
                    .expect("no panic"),
            ),
            // Mended meanwhile.
            (Err(_), _) => {}
        }
    }
}

/// Closes a connection in a way that the other end takes for an error.
fn reset(socket: TcpStream) {
    let _ = set_socket_linger(&socket, Some(Duration::ZERO));
}

/// More than this is not taken from one end before the other one has some of it.
const ENOUGH: usize = 64;

/// What goes one way, and when it is due. Nothing is its end.
#[derive(Default)]
struct Way {
    queue: VecDeque<(Instant, Vec<u8>)>,
    /// Whether nothing comes any more, and whether the other end knows.
    has_ended: bool,
    is_shut: bool,
}

impl Way {
    fn due(&self) -> Option<Duration> {
        self.queue.front().map(|(due, _)| due.saturating_duration_since(Instant::now()))
    }

    fn is_due(&self) -> bool {
        self.due() == Some(Duration::ZERO)
    }

    /// What comes, for as long as there is something now.
    fn read(&mut self, mut from: &TcpStream) -> std::io::Result<Option<Vec<u8>>> {
        let mut buffer = vec![0; 65536];
        if self.has_ended || self.queue.len() >= ENOUGH {
            return Ok(None);
        }
        match from.read(&mut buffer) {
            Ok(count) => {
                self.has_ended = count == 0;
                buffer.truncate(count);
                Ok(Some(buffer))
            }
            Err(error)
                if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) =>
            {
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    /// Writes what is due, as far as it is taken.
    fn write(&mut self, mut to: &TcpStream) -> std::io::Result<()> {
        while self.is_due() {
            let Some((_, bytes)) = self.queue.front_mut() else { break };
            if bytes.is_empty() {
                to.shutdown(Shutdown::Write)?;
                self.is_shut = true;
            } else {
                match to.write(bytes) {
                    Ok(count) => drop(bytes.drain(..count)),
                    Err(error)
                        if matches!(
                            error.kind(),
                            ErrorKind::WouldBlock | ErrorKind::Interrupted
                        ) =>
                    {
                        break;
                    }
                    Err(error) => return Err(error),
                }
                if !bytes.is_empty() {
                    continue;
                }
            }
            self.queue.pop_front();
        }
        Ok(())
    }
}

struct Connection {
    client: TcpStream,
    /// Connected to when something may pass.
    server: Option<TcpStream>,
    woken: UnixStream,
    requests: Way,
    answers: Way,
    /// The last bytes from the client, in which a marker may have begun.
    tail: Vec<u8>,
    /// Whether the marker is on its way to the server, and its answer is not to come back.
    is_doomed: bool,
    /// What is to be answered next, whatever the server says.
    instead: Option<Vec<u8>>,
    has_lost: bool,
}

impl Connection {
    fn new(client: TcpStream, woken: UnixStream) -> Self {
        let (requests, answers) = Default::default();
        Self {
            client,
            server: None,
            woken,
            requests,
            answers,
            tail: Vec::new(),
            is_doomed: false,
            instead: None,
            has_lost: false,
        }
    }

    /// Until its end; returns whether that came from the marker.
    fn serve(mut self, shared: &Shared) -> bool {
        let mut is_hit = false;
        let is_orderly = loop {
            // The decision and the action are one step for threads that change the mode.
            let mut state = shared.lock();
            match self.step(&mut state, shared) {
                Ok(false) => {}
                Ok(true) => break true,
                Err(End::Error) => break false,
                Err(End::Hit) => {
                    is_hit = true;
                    break false;
                }
            }
            let is_hole = state.mode == Mode::BlackHole;
            drop(state);
            self.sleep(is_hole);
        };
        if !is_orderly {
            reset(self.client);
            self.server.into_iter().for_each(reset);
        }
        is_hit
    }

    /// Does what can be done now; returns whether both ends have ended.
    fn step(&mut self, state: &mut State, shared: &Shared) -> Result<bool, End> {
        while matches!(self.woken.read(&mut [0; 64]), Ok(count) if count > 0) {}
        match state.mode {
            Mode::Cut | Mode::End => return Err(End::Error),
            Mode::BlackHole => return Ok(false),
            Mode::SwallowAnswers => {}
            _ if self.has_lost => return Err(End::Error),
            _ => {}
        }
        if self.server.is_none() {
            let server = TcpStream::connect_timeout(&state.server, Duration::from_secs(10))?;
            for socket in [&server, &self.client] {
                socket.set_nonblocking(true)?;
                socket.set_nodelay(true)?;
            }
            self.server = Some(server);
        }
        let server = self.server.as_ref().ok_or(End::Error)?;
        let due = Instant::now() + state.delay;
        while let Some(bytes) = self.requests.read(&self.client)? {
            state.client_bytes += bytes.len() as u64;
            self.tail.extend(&bytes);
            match &state.mode {
                Mode::CutAt(marker, _)
                | Mode::HoldFrom(marker)
                | Mode::SwallowFrom(marker)
                | Mode::AnswerFrom(marker, _)
                    if !self.tail.windows(marker.len()).any(|window| window == marker) =>
                {
                    self.tail.drain(..self.tail.len().saturating_sub(marker.len() - 1));
                }
                Mode::CutAt(_, arrives) => {
                    self.is_doomed = *arrives;
                    state.mode = Mode::Pass;
                    if !self.is_doomed {
                        return Err(End::Hit);
                    }
                }
                Mode::HoldFrom(_) | Mode::SwallowFrom(_) | Mode::AnswerFrom(..) => {
                    if let Mode::AnswerFrom(_, answer) = &state.mode {
                        self.instead = Some(answer.clone());
                    }
                    let holds = matches!(state.mode, Mode::HoldFrom(_));
                    state.mode = if holds { Mode::BlackHole } else { Mode::SwallowAnswers };
                    state.is_hit = true;
                    shared.changed.notify_all();
                }
                _ => self.tail.clear(),
            }
            self.requests.queue.push_back((due, bytes));
        }
        if state.mode == Mode::BlackHole {
            return Ok(false);
        }
        self.requests.write(server)?;
        while let Some(bytes) = self.answers.read(server)? {
            if self.is_doomed {
                return Err(End::Hit);
            } else if let Some(answer) = self.instead.take() {
                self.answers.queue.push_back((due, answer));
            } else if state.mode == Mode::SwallowAnswers {
                self.has_lost = true;
            } else {
                self.answers.queue.push_back((due, bytes));
            }
        }
        self.answers.write(&self.client)?;
        Ok(self.requests.is_shut && self.answers.is_shut)
    }

    /// Until there is something to do.
    fn sleep(&self, is_hole: bool) {
        let mut fds = vec![PollFd::new(&self.woken, PollFlags::IN)];
        let mut limit = None;
        if let (false, Some(server)) = (is_hole, &self.server) {
            for (from, in_way, out_way) in [
                (&self.client, &self.requests, &self.answers),
                (server, &self.answers, &self.requests),
            ] {
                let mut flags = PollFlags::empty();
                flags.set(PollFlags::IN, !in_way.has_ended && in_way.queue.len() < ENOUGH);
                flags.set(PollFlags::OUT, out_way.is_due());
                // One that has hung up would say so without end.
                if !flags.is_empty() {
                    fds.push(PollFd::from_borrowed_fd(std::os::fd::AsFd::as_fd(from), flags));
                }
            }
            limit = [&self.requests, &self.answers]
                .into_iter()
                .filter_map(Way::due)
                .filter(|due| !due.is_zero())
                .min();
        }
        let limit = limit.map(|limit| Timespec::try_from(limit).expect("a short time"));
        // An interrupted one looks again.
        let _ = poll(&mut fds, limit.as_ref());
    }
}

/// How a connection ends out of order.
enum End {
    Error,
    Hit,
}

impl From<std::io::Error> for End {
    fn from(_: std::io::Error) -> Self {
        Self::Error
    }
}
