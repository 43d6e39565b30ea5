//! The conversation with a running agent over its Unix socket.

use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use super::failure::{Exit, Failure};
use crate::agent::control::connect;
use crate::protocol::control::{Reply, Request};

/// The longest reply line taken: a hundred problems with long paths stay far below.
const LINE_LEN_MAX: u64 = 4 * 1024 * 1024;

/// An open conversation: one request, then its replies.
#[derive(Debug)]
pub struct Conversation {
    lines: BufReader<UnixStream>,
}

impl Conversation {
    /// Asks the agent that listens at `socket` and belongs to `config`.
    ///
    /// # Errors
    /// Exit code 6 when no agent listens there.
    pub fn open(socket: &Path, config: &Path, request: &Request) -> Result<Self, Failure> {
        let mut stream = connect(socket).map_err(|error| match error.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => Failure::no_agent(config),
            _ => Failure::new(Exit::NoAgent, format!("Cannot talk to the agent at {socket:?}"))
                .because(&error),
        })?;
        let mut line = serde_json::to_vec(request).map_err(|error| {
            Failure::failed("Cannot write the request to the agent").because(&error)
        })?;
        line.push(b'\n');
        stream.write_all(&line).map_err(|error| broken(&error))?;
        Ok(Self { lines: BufReader::new(stream) })
    }

    /// Returns the next reply, or nothing when the agent closed or `limit` passed without one.
    ///
    /// # Errors
    /// When the agent reports a failure or says something that cannot be understood.
    pub fn next(&mut self, limit: Option<Duration>) -> Result<Next, Failure> {
        // A zero time limit would mean none to the socket.
        let limit = limit.map(|limit| limit.max(Duration::from_millis(1)));
        self.lines.get_ref().set_read_timeout(limit).map_err(|error| broken(&error))?;
        let mut line = String::new();
        let read = io::Read::take(&mut self.lines, LINE_LEN_MAX).read_line(&mut line);
        match read {
            Ok(0) => return Ok(Next::Closed),
            Ok(_) if line.ends_with('\n') => {}
            Ok(_) => return Ok(Next::Closed),
            Err(error)
                if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) =>
            {
                return Ok(Next::TimeUp);
            }
            Err(error) => return Err(broken(&error)),
        }
        match serde_json::from_str(&line) {
            Ok(Reply::Error { message }) => Err(Failure::failed(message)),
            Ok(reply) => Ok(Next::Reply(reply)),
            Err(error) => Err(Failure::failed("The agent's answer cannot be understood")
                .because(&error)
                .hint("the agent may be of another version: restart it")),
        }
    }

    /// Returns the reply of a request that has exactly one.
    ///
    /// # Errors
    /// As [`Conversation::next`], and when the agent closes or takes a minute.
    pub fn only(mut self) -> Result<Reply, Failure> {
        match self.next(Some(Duration::from_secs(60)))? {
            Next::Reply(reply) => Ok(reply),
            Next::Closed => Err(stopped()),
            Next::TimeUp => Err(Failure::failed("The agent did not answer within a minute")),
        }
    }
}

/// What came next in a conversation.
#[derive(Debug)]
pub enum Next {
    /// A reply.
    Reply(Reply),
    /// The agent is gone.
    Closed,
    /// The time was up.
    TimeUp,
}

/// The failure of an agent that went away in the middle.
#[must_use]
pub fn stopped() -> Failure {
    Failure::new(Exit::NoAgent, "The agent stopped")
}

/// The failure of an answer that belongs to another question.
#[must_use]
pub fn unexpected() -> Failure {
    Failure::failed("The agent's answer is not to this question")
        .hint("the agent may be of another version: restart it")
}

fn broken(error: &io::Error) -> Failure {
    Failure::new(Exit::NoAgent, "The conversation with the agent broke off").because(error)
}
