//! A session with the server. It goes on only while somebody asks it something, or waits: there is nobody else to drive it.
//! What comes in between stays in the socket until then.

use std::future::poll_fn;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use tokio::time::timeout;
use tokio_postgres::types::{ToSql, Type};
use tokio_postgres::{AsyncMessage, Client, Error, Row};

use super::cancel::Canceller;
use super::failures;
use super::line::{self, Place};
use super::session::Ear;
use crate::backend::remote::Failure;

/// What comes from the server without being asked for, and its end. While it is polled, questions and answers pass.
pub type Messages = Box<dyn FnMut(&mut Context<'_>) -> Poll<Option<Result<AsyncMessage, Error>>>>;

/// A value for a statement, and its type. Types that are told need not be asked for.
pub type Parameter<'a> = (&'a (dyn ToSql + Sync), Type);

/// The answer to a statement that takes as long as others like.
type Standing = Pin<Box<dyn Future<Output = Result<(), Error>>>>;

/// A session.
pub struct Link {
    client: Rc<Client>,
    /// What the session says; `None` once it has ended.
    messages: Option<Messages>,
    /// Why it has ended.
    end: Option<Error>,
    ear: Ear,
    /// The same socket once more, to see whether something has come.
    socket: OwnedFd,
    /// Whether it was told of something since somebody asked for that.
    is_told: bool,
    /// What came with the notifications, while somebody wants to know it.
    payloads: Option<Vec<String>>,
    /// Whether it is told when something changes; `None` until somebody has waited.
    pub listens: Option<bool>,
    /// Its place in line, which ends with the session.
    pub place: Option<Place>,
    /// While it sleeps there, nothing else can be asked.
    standing: Option<Standing>,
    canceller: Canceller,
    /// Whether a write is cancelled, too, when it is not answered in time. Everything else is.
    pub cancels_writes: bool,
}

impl Link {
    /// A session that has begun.
    pub fn new(client: Client, messages: Messages, ear: Ear, socket: OwnedFd, canceller: Canceller) -> Self {
        Self {
            client: Rc::new(client),
            messages: Some(messages),
            end: None,
            ear,
            socket,
            is_told: false,
            payloads: None,
            listens: None,
            place: None,
            standing: None,
            canceller,
            cancels_writes: false,
        }
    }

    /// Readable when the session says something.
    pub fn socket(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    /// Whether it can still be used, as far as is known.
    pub fn is_open(&self) -> bool {
        self.messages.is_some()
    }

    /// The process of the server that it was said to be with in the beginning.
    pub fn process(&self) -> Option<i32> {
        self.ear.process()
    }

    /// Runs a statement that returns rows, in one round trip, and in a transaction of its own. It has no name that would have to be
    /// remembered, by a session that may be another one the next time.
    pub async fn query(&mut self, limit: Duration, statement: &str, values: &[Parameter<'_>]) -> Result<Vec<Row>, Failure> {
        let Self { client, messages, end, is_told, payloads, .. } = self;
        let asked = timeout(limit, drive(messages, end, is_told, payloads, client.query_typed(statement, values))).await;
        self.in_time(limit, asked.ok(), false).await
    }

    /// Runs a statement that changes rows, and says how many.
    pub async fn execute(&mut self, limit: Duration, statement: &str, values: &[Parameter<'_>]) -> Result<u64, Failure> {
        let Self { client, messages, end, is_told, payloads, .. } = self;
        let asked = timeout(limit, drive(messages, end, is_told, payloads, client.execute_typed(statement, values))).await;
        self.in_time(limit, asked.ok(), true).await
    }

    /// Runs several statements, in one transaction.
    pub async fn batch(&mut self, limit: Duration, statements: &str) -> Result<(), Failure> {
        let Self { client, messages, end, is_told, payloads, .. } = self;
        let asked = timeout(limit, drive(messages, end, is_told, payloads, client.batch_execute(statements))).await;
        self.in_time(limit, asked.ok(), false).await
    }

    /// Fails if nothing can be changed through it.
    pub async fn check_writable(&mut self, limit: Duration) -> Result<(), Failure> {
        let rows = self.query(limit, "SELECT current_setting('transaction_read_only')", &[]).await?;
        match rows.first().map(|row| row.try_get::<_, &str>(0)) {
            Some(Ok("on")) => Err(Failure::transient("the server is read-only")),
            _ => Ok(()),
        }
    }

    /// Makes sure that it is told of what happens on `channel`; returns whether it is. Only a session of the server's own is: see
    /// [`super::session`]. That it hears itself is a further test.
    pub async fn listen(&mut self, limit: Duration, channel: &str, word: &str) -> Result<bool, Failure> {
        self.payloads = Some(Vec::new());
        let statements = format!("LISTEN \"{channel}\"; SELECT pg_notify('{channel}', '{word}')");
        let listening = self.batch(limit, &statements).await;
        let heard = self.payloads.take().unwrap_or_default();
        listening?;
        Ok(heard.iter().any(|heard| heard == word))
    }

    /// Whether it was told of something since the last time.
    pub fn was_told(&mut self) -> bool {
        std::mem::take(&mut self.is_told)
    }

    /// Ends when it is told of something, or the session ends; whatever has come by then is one event.
    pub fn poll_told(&mut self, context: &mut Context<'_>) -> Poll<()> {
        poll(&mut self.messages, &mut self.end, &mut self.is_told, &mut self.payloads, context);
        if self.is_told || self.messages.is_none() { Poll::Ready(()) } else { Poll::Pending }
    }

    /// Begins to sleep until whoever is `ahead` of this place leaves, or for `limit`.
    pub fn stand(&mut self, place: Place, ahead: i32, limit: Duration) {
        let client = Rc::clone(&self.client);
        // 0 would be for ever.
        let limit = i64::try_from(limit.as_millis()).unwrap_or(i64::MAX).max(1);
        self.standing = Some(Box::pin(async move {
            let values: [Parameter<'_>; 3] = [(&place.line, Type::INT4), (&ahead, Type::INT4), (&limit, Type::INT8)];
            client.query_typed(line::SET, &values).await?;
            client.batch_execute(line::STAND).await
        }));
    }

    /// Whether it sleeps in line.
    pub fn is_standing(&self) -> bool {
        self.standing.is_some()
    }

    /// Ends when it sleeps in line no more.
    pub fn poll_standing(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Failure>> {
        let Some(standing) = &mut self.standing else { return Poll::Ready(Ok(())) };
        // The first time, this sends the question; each answer may be followed by another question.
        let mut answer = standing.as_mut().poll(context);
        for _ in 0..2 {
            if answer.is_pending() {
                poll(&mut self.messages, &mut self.end, &mut self.is_told, &mut self.payloads, context);
                answer = standing.as_mut().poll(context);
            }
        }
        let Poll::Ready(answer) = answer else { return Poll::Pending };
        self.standing = None;
        Poll::Ready(self.answer(answer, false))
    }

    /// Says goodbye, so that the server need not wonder. Does not wait for it.
    pub fn close(self) {
        let Self { client, messages, standing, .. } = self;
        drop((client, standing));
        if let Some(mut messages) = messages {
            // Whether it works does not matter.
            let _ = messages(&mut Context::from_waker(Waker::noop()));
        }
    }

    /// The answer that has come within `limit`, if there is one.
    async fn in_time<T>(&mut self, limit: Duration, asked: Option<Result<T, Error>>, was_write: bool) -> Result<T, Failure> {
        if let Some(asked) = asked {
            return self.answer(asked, was_write);
        }
        // Before the connection goes: a pooler would know no more what is meant.
        if self.cancels_writes || !was_write {
            self.canceller.cancel(self.ear.key(), limit).await;
        }
        // An answer that comes yet must not be taken for that to the next question.
        self.messages = None;
        Err(failures::no_answer(was_write))
    }

    fn answer<T>(&mut self, asked: Result<T, Error>, was_write: bool) -> Result<T, Failure> {
        match asked {
            Ok(answer) => Ok(answer),
            // Why it was closed says more than that it was.
            Err(error) if error.is_closed() => {
                let end = self.end.take().unwrap_or(error);
                let failure = failures::of(&end, was_write);
                // What ended the session before was no answer to this.
                Err(if was_write { failure.indefinite() } else { failure })
            }
            Err(error) => Err(failures::of(&error, was_write)),
        }
    }
}

/// Lets the session go on until there is an answer.
async fn drive<T>(
    messages: &mut Option<Messages>,
    end: &mut Option<Error>,
    is_told: &mut bool,
    payloads: &mut Option<Vec<String>>,
    question: impl Future<Output = Result<T, Error>>,
) -> Result<T, Error> {
    let mut question = pin!(question);
    let mut is_asked = false;
    poll_fn(|context| {
        // Sends the question first.
        if !std::mem::replace(&mut is_asked, true)
            && let Poll::Ready(answer) = Pin::as_mut(&mut question).poll(context)
        {
            return Poll::Ready(answer);
        }
        poll(messages, end, is_told, payloads, context);
        Pin::as_mut(&mut question).poll(context)
    })
    .await
}

/// Takes in all that has come.
fn poll(
    messages: &mut Option<Messages>,
    end: &mut Option<Error>,
    is_told: &mut bool,
    payloads: &mut Option<Vec<String>>,
    context: &mut Context<'_>,
) {
    // Ends when nothing more has come, or nothing more will.
    while let Some(next) = messages {
        match next(context) {
            Poll::Pending => return,
            Poll::Ready(Some(Ok(AsyncMessage::Notification(notification)))) => match payloads {
                // Somebody's test, perhaps our own.
                _ if !notification.payload().is_empty() => {
                    payloads.iter_mut().for_each(|payloads| payloads.push(notification.payload().to_owned()));
                }
                _ => *is_told = true,
            },
            Poll::Ready(Some(Ok(_))) => {}
            Poll::Ready(Some(Err(error))) => {
                *end = Some(error);
                // With it goes what would wait for answers.
                *messages = None;
            }
            Poll::Ready(None) => *messages = None,
        }
    }
}
