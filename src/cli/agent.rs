//! The commands that ask the running agent: status, sync, pause, resume.

use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde_json::json;

use super::control::{Conversation, Next, stopped, unexpected};
use super::failure::{Exit, Failure};
use super::live::{LiveArea, SyncProgress};
use super::output::{Output, counted, printable};
use super::status::{Look, all_problems, is_about_paths, status_json, status_text, summary_line};
use crate::protocol::control::{Problem, Reply, Request, State, Status};

/// The agent of one config.
#[derive(Debug)]
pub struct Agent {
    /// Its config.
    pub config: PathBuf,
    /// Where it listens.
    pub socket: PathBuf,
}

impl Agent {
    pub(super) fn ask(&self, request: &Request) -> Result<Conversation, Failure> {
        Conversation::open(&self.socket, &self.config, request)
    }

    /// `picloud status`.
    ///
    /// # Errors
    /// When the agent does not run or answers wrongly.
    pub fn status(&self, output: Output, plain: bool) -> Result<Exit, Failure> {
        let reply = match self.ask(&Request::Status).and_then(Conversation::only) {
            Err(failure) if failure.exit() == Exit::NoAgent && output.json() => {
                // A script that reads the state gets one, and the exit code says the rest.
                told(output.object(&status_json(&no_agent_status())))?;
                return Err(failure);
            }
            other => other?,
        };
        let Reply::Status(status) = reply else {
            return Err(unexpected());
        };
        if output.json() {
            told(output.object(&status_json(&status)))?;
        } else {
            told(output.line(&status_text(look(output, plain), &status)))?;
        }
        Ok(Exit::from_state(status.state))
    }

    /// `picloud status --watch`.
    ///
    /// # Errors
    /// When the agent does not run, stops, or answers wrongly.
    pub fn watch(&self, output: Output, plain: bool) -> Result<Exit, Failure> {
        let mut conversation = self.ask(&Request::Watch)?;
        let mut area = LiveArea::new(output);
        let mut last = String::new();
        loop {
            match conversation.next(None)? {
                Next::Reply(Reply::Status(status)) => {
                    if output.json() {
                        told(output.object(&status_json(&status)))?;
                    } else if output.live() && !plain {
                        area.show(&status_text(look(output, plain), &status));
                    } else {
                        let line = match plain {
                            true => super::spoken::summary(&status),
                            false => summary_line(&status),
                        };
                        if line != last {
                            told(output.line(&line))?;
                            last = line;
                        }
                    }
                }
                Next::Reply(_) => return Err(unexpected()),
                Next::Closed | Next::TimeUp => return Err(stopped()),
            }
        }
    }

    /// `picloud sync`.
    ///
    /// # Errors
    /// When the agent does not run, stops, or answers wrongly.
    pub fn sync(
        &self,
        output: Output,
        plain: bool,
        timeout: Option<Duration>,
    ) -> Result<Exit, Failure> {
        let deadline = timeout.map(|timeout| Instant::now() + timeout);
        let mut conversation = self.ask(&Request::Sync)?;
        let mut progress = SyncProgress::new(output, plain);
        loop {
            let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
            match conversation.next(left)? {
                Next::Reply(Reply::Progress(status)) => progress.show(&status)?,
                Next::Reply(Reply::Synced(status)) => {
                    progress.clear();
                    return finish_sync(output, plain, &status);
                }
                Next::Reply(_) => return Err(unexpected()),
                Next::Closed => return Err(stopped()),
                Next::TimeUp => {
                    progress.clear();
                    let secs = timeout.unwrap_or_default().as_secs();
                    return Err(Failure::new(
                        Exit::Busy,
                        format!("Still at work after {}", counted(secs, "second", "seconds")),
                    )
                    .hint("the agent goes on; `picloud status` shows how far it is"));
                }
            }
        }
    }

    /// `picloud pause` and `picloud resume`.
    ///
    /// # Errors
    /// When the agent does not run or answers wrongly.
    pub fn set_paused(&self, output: Output, paused: bool) -> Result<Exit, Failure> {
        let request = if paused { Request::Pause } else { Request::Resume };
        let still = match self.ask(&request)?.only()? {
            Reply::Ok => Vec::new(),
            Reply::StillPaused { folders } => folders,
            _ => return Err(unexpected()),
        };
        if output.json() {
            let object = match paused {
                true => json!({"type": "paused", "version": 1}),
                false => json!({"type": "resumed", "version": 1, "still_paused": still}),
            };
            told(output.object(&object))?;
        } else if paused {
            told(output.line("Paused: nothing is transferred until `picloud resume`"))?;
        } else if still.is_empty() {
            told(output.line("Resumed"))?;
        }
        if still.is_empty() {
            return Ok(Exit::Done);
        }
        let mut failure = Failure::new(Exit::Paused, "The settings keep folders paused");
        for folder in &still {
            failure = failure.caused_by(format!("{} has `paused = true`", printable(folder)));
        }
        Err(failure.hint(format!("edit {}; all other folders go on", self.config.display())))
    }
}

/// Asks the agent at `socket` for its status without saying anything; nothing when it cannot tell.
#[must_use]
pub fn status_of(socket: &Path, config: &Path) -> Option<Status> {
    let mut conversation = Conversation::open(socket, config, &Request::Status).ok()?;
    match conversation.next(Some(Duration::from_secs(10))) {
        Ok(Next::Reply(Reply::Status(status))) => Some(status),
        _ => None,
    }
}

/// A pipe that nobody reads any more ends the command quietly, as with other tools.
pub(super) fn told(written: io::Result<()>) -> Result<(), Failure> {
    match written {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => std::process::exit(0),
        Err(error) => Err(Failure::failed("Cannot write the answer").because(&error)),
    }
}

fn no_agent_status() -> Status {
    Status {
        version: 1,
        program: String::new(),
        state: State::Stopped,
        folders: Vec::new(),
        problems: vec![Problem { path: String::new(), reason: "The agent is not running".into() }],
    }
}

/// Returns how a status is shown now.
pub(super) fn look(output: Output, plain: bool) -> Look {
    let now = jiff::Timestamp::now().as_second();
    Look { output, width: output.columns(), plain, now }
}

fn finish_sync(output: Output, plain: bool, status: &Status) -> Result<Exit, Failure> {
    let exit = match Exit::from_state(status.state) {
        // The agent says it is done with what was there at the call; newer work may be under way.
        Exit::Busy => Exit::Done,
        other => other,
    };
    if output.json() {
        let mut object = status_json(status);
        object["type"] = "synced".into();
        told(output.object(&object))?;
    } else if exit == Exit::Done {
        let status = Status { state: State::InSync, ..status.clone() };
        told(output.line(&status_text(look(output, plain), &status)))?;
    }
    let failure = match exit {
        Exit::Offline => Failure::new(exit, "The server cannot be reached")
            .hint("the agent keeps trying; changes here are kept until then"),
        Exit::Paused => Failure::new(exit, "Syncing is paused")
            .hint("`picloud resume` lets it go on, or says what keeps a folder paused"),
        Exit::Person => {
            let mut failure = Failure::new(
                exit,
                match status.state {
                    State::Stopped => "Syncing has stopped",
                    _ if is_about_paths(status) => "Some paths could not be synced",
                    _ => "A person is needed",
                },
            );
            for problem in all_problems(status).take(10) {
                failure = failure.caused_by(match problem.path.as_str() {
                    "" => printable(&problem.reason),
                    path => format!("{}: {}", printable(path), printable(&problem.reason)),
                });
            }
            failure.hint("`picloud status` shows all of them")
        }
        _ => return Ok(exit),
    };
    Err(failure)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_state_has_its_exit_code() {
        let codes: Vec<u8> = [
            State::InSync,
            State::Problem,
            State::Stopped,
            State::Offline,
            State::Paused,
            State::Syncing,
        ]
        .map(|state| Exit::from_state(state).code())
        .into();
        assert_eq!(codes, [0, 3, 3, 4, 5, 7]);
    }
}
