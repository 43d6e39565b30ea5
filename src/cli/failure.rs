//! What ends a command early, as the person and the script meet it.
//!
//! The first line stands alone: it says what happened, to what. `Caused by:` lines follow the chain
//! of sources, `Hint:` says what to do. The exit codes are a contract that scripts rely on.

use std::fmt;
use std::io;
use std::path::Path;

use crate::client::ClientError;
use crate::protocol::control::State;
use crate::protocol::{CallError, ConnectError};

/// The exit codes, and what each means to a script.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// Done, or in sync.
    Done = 0,
    /// It failed; one clear line on stderr says why.
    Failed = 1,
    /// Wrong usage.
    Usage = 2,
    /// A person is needed: a conflict, an approval, a problem.
    Person = 3,
    /// The server cannot be reached.
    Offline = 4,
    /// Syncing is paused.
    Paused = 5,
    /// The agent does not run.
    NoAgent = 6,
    /// Still at work when the time was up.
    Busy = 7,
}

impl Exit {
    /// Returns the number that the process ends with.
    #[must_use]
    pub const fn code(self) -> u8 {
        self as u8
    }

    /// Returns what a command that was run in this one's place ended with.
    #[must_use]
    pub fn of_code(code: u8) -> Self {
        let all = [
            Self::Done,
            Self::Usage,
            Self::Person,
            Self::Offline,
            Self::Paused,
            Self::NoAgent,
            Self::Busy,
        ];
        all.into_iter().find(|exit| exit.code() == code).unwrap_or(Self::Failed)
    }

    /// Returns what a state of the agent means to a script.
    #[must_use]
    pub const fn from_state(state: State) -> Self {
        match state {
            State::InSync => Self::Done,
            State::Syncing => Self::Busy,
            State::Offline => Self::Offline,
            State::Paused => Self::Paused,
            State::Problem | State::Stopped => Self::Person,
        }
    }
}

/// A command that failed.
#[derive(Debug)]
pub struct Failure {
    exit: Exit,
    message: String,
    causes: Vec<String>,
    hint: Option<String>,
}

impl Failure {
    /// A failure with its own message and nothing more to tell.
    #[must_use]
    pub fn new(exit: Exit, message: impl Into<String>) -> Self {
        Self { exit, message: message.into(), causes: Vec::new(), hint: None }
    }

    /// A failure of exit code 1.
    #[must_use]
    pub fn failed(message: impl Into<String>) -> Self {
        Self::new(Exit::Failed, message)
    }

    /// The person asked for something that cannot be asked for.
    #[must_use]
    pub fn usage(message: impl Into<String>) -> Self {
        Self::new(Exit::Usage, message)
    }

    /// A file or directory could not be worked on; `doing` is "Cannot read", say.
    #[must_use]
    pub fn file(doing: &str, path: &Path, error: &io::Error) -> Self {
        Self::failed(format!("{doing} {path:?}")).caused_by(os_text(error))
    }

    /// Takes a library error over: its text is the message, its sources the causes.
    #[must_use]
    pub fn from_error(exit: Exit, error: &(dyn std::error::Error + 'static)) -> Self {
        let mut failure = Self::new(exit, error.to_string());
        failure.push_sources(error);
        failure
    }

    /// What the client library could not do.
    #[must_use]
    pub fn of_client(error: &ClientError) -> Self {
        match error {
            ClientError::Connect(error) => Self::of_connect(error),
            ClientError::Call(CallError::Closed(_)) if error.is_offline() => {
                Self::from_error(Exit::Offline, error)
            }
            ClientError::Call(CallError::Failed(failure)) => {
                Self::from_error(Exit::Failed, failure)
            }
            ClientError::Root => Self::from_error(Exit::Usage, error),
            error => Self::from_error(Exit::Failed, error),
        }
    }

    /// Why no connection came about.
    #[must_use]
    pub fn of_connect(error: &ConnectError) -> Self {
        match error {
            ConnectError::WrongFingerprint { address, expected, found } => Self::failed(format!(
                "The server at {address} is not the one expected: its fingerprint is another"
            ))
            .caused_by(format!("expected {expected}, found {found}"))
            .hint(
                "if the server was set up anew, ask its owner for a new link; \
                 else something sits between you and it",
            ),
            error if error.is_offline() => Self::from_error(Exit::Offline, error)
                .hint("is `picloud-server` running there, and can this machine reach it?"),
            ConnectError::Address { .. } => Self::from_error(Exit::Usage, error),
            error => Self::from_error(Exit::Failed, error),
        }
    }

    /// The agent of this config does not run.
    #[must_use]
    pub fn no_agent(config: &Path) -> Self {
        Self::new(Exit::NoAgent, format!("The agent of {config:?} is not running")).hint(format!(
            "start it with `systemctl --user start picloud-agent` or `picloud-agent --config {}`",
            config.display()
        ))
    }

    /// Adds a line of why.
    #[must_use]
    pub fn caused_by(mut self, cause: impl Into<String>) -> Self {
        self.causes.push(cause.into());
        self
    }

    /// Adds the causes of an error, the error itself included.
    #[must_use]
    pub fn because(mut self, error: &(dyn std::error::Error + 'static)) -> Self {
        self.causes.push(error.to_string());
        self.push_sources(error);
        self
    }

    /// Says what to do.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// Returns what the process is to end with.
    #[must_use]
    pub const fn exit(&self) -> Exit {
        self.exit
    }

    /// Returns the message with its causes, as one line.
    #[must_use]
    pub fn line(&self) -> String {
        let parts = std::iter::once(&self.message).chain(&self.causes);
        parts.map(String::as_str).collect::<Vec<_>>().join(": ")
    }

    /// Returns what to do.
    #[must_use]
    pub fn advice(&self) -> Option<&str> {
        self.hint.as_deref()
    }

    fn push_sources(&mut self, error: &(dyn std::error::Error + 'static)) {
        let mut source = error.source();
        while let Some(cause) = source {
            let text = cause.downcast_ref::<io::Error>().map_or_else(|| cause.to_string(), os_text);
            // Some libraries repeat their source in their own text; once is enough.
            let told =
                std::iter::once(&self.message).chain(&self.causes).any(|said| said.contains(&text));
            if !told {
                self.causes.push(text);
            }
            source = cause.source();
        }
    }

    /// Returns the whole text for stderr.
    #[must_use]
    pub fn render(&self) -> String {
        let mut text = format!("Error: {}\n", self.message);
        for cause in &self.causes {
            text.push_str(&format!("Caused by: {cause}\n"));
        }
        if let Some(hint) = &self.hint {
            text.push_str(&format!("Hint: {hint}\n"));
        }
        text
    }

    /// Returns the object that `--json` writes.
    #[must_use]
    pub fn json(&self) -> serde_json::Value {
        serde_json::json!({
            "type": "error",
            "version": 1,
            "exit": self.exit.code(),
            "message": self.message,
            "causes": self.causes,
            "hint": self.hint,
        })
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

/// Returns an operating system error without its number, which helps nobody.
#[must_use]
pub fn os_text(error: &io::Error) -> String {
    let text = error.to_string();
    match text.rfind(" (os error ") {
        Some(end) if error.raw_os_error().is_some() => text[..end].to_owned(),
        _ => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("Cannot reach server home.example:46000")]
    struct Unreachable(#[source] io::Error);

    #[test]
    fn a_refused_connection_says_where_and_what_next() {
        let refused = Unreachable(io::Error::from_raw_os_error(111));
        let failure =
            Failure::from_error(Exit::Offline, &refused).hint("is `picloud-server` running there?");
        assert_eq!(
            failure.render(),
            "Error: Cannot reach server home.example:46000\n\
             Caused by: Connection refused\n\
             Hint: is `picloud-server` running there?\n"
        );
        assert_eq!(failure.exit().code(), 4);
    }

    #[test]
    fn a_cause_that_the_message_tells_already_is_not_told_twice() {
        #[derive(Debug, thiserror::Error)]
        #[error("Cannot read: {0}")]
        struct Wordy(#[source] std::num::ParseIntError);
        let error = Wordy("x".parse::<u8>().unwrap_err());
        let text = Failure::from_error(Exit::Failed, &error).render();
        assert_eq!(text, "Error: Cannot read: invalid digit found in string\n");
    }
}
