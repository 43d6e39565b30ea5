//! Reaching a server and being let in, with every refusal in words that say what to do.

use crate::agent::config::Authority;
use crate::cli::failure::{Exit, Failure};
use crate::cli::prompt;
use crate::model::{Fingerprint, JoinLink};
use crate::protocol::message::{Admitted, Answer, AuthReply, FailureCode, Request};
use crate::protocol::{CallError, ConnectError, Connection, Endpoint, Trust};

/// Name and version, for the server's log.
const PROGRAM: &str = concat!("picloud/", env!("CARGO_PKG_VERSION"));

/// Tries at a question when a person answers.
const TRIES_MAX: u32 = 3;

/// A server as the settings name it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Server {
    /// `HOST:PORT`.
    pub address: String,
    /// How it is known to be the right one.
    pub authority: Authority,
}

impl Server {
    /// The server of a join link.
    #[must_use]
    pub fn of_link(link: &JoinLink) -> Self {
        Self {
            address: link.address.clone(),
            authority: Authority::Fingerprint(link.fingerprint),
        }
    }

    fn endpoint(&self) -> Endpoint {
        let trust = match self.authority {
            Authority::Fingerprint(fingerprint) => Trust::Pinned(fingerprint),
            Authority::Public => Trust::PublicAuthority,
        };
        Endpoint {
            address: self.address.clone(),
            trust,
        }
    }

    /// Connects.
    ///
    /// # Errors
    /// Exit code 4 when the server cannot be reached.
    pub async fn connect(&self) -> Result<Connection, Failure> {
        let (connection, _) = Box::pin(Connection::open(&self.endpoint(), PROGRAM))
            .await
            .map_err(|error| not_connected(&error))?;
        Ok(connection)
    }
}

/// Says why no connection came about.
pub fn not_connected(error: &ConnectError) -> Failure {
    match error {
        ConnectError::WrongFingerprint {
            address,
            expected,
            found,
        } => Failure::failed(format!(
            "The server at {address} is not the one expected: its fingerprint is another"
        ))
        .caused_by(format!("expected {expected}, found {found}"))
        .hint(
            "if the server was set up anew, ask its owner for a new link; \
             else something sits between you and it",
        ),
        error if error.is_offline() => Failure::from_error(Exit::Offline, error)
            .hint("is `picloud-server` running there, and can this machine reach it?"),
        ConnectError::Address { .. } => Failure::from_error(Exit::Usage, error),
        error => Failure::from_error(Exit::Failed, error),
    }
}

/// Says why a request has no reply.
pub fn not_answered(error: &CallError) -> Failure {
    let code = match error {
        CallError::Failed(failure) => Some(failure.code),
        CallError::Closed(reason) => reason.code(),
        CallError::Message(_) => return Failure::from_error(Exit::Failed, error),
    };
    match (error, code) {
        (_, Some(FailureCode::Throttled)) | (CallError::Failed(_), _) => {
            Failure::from_error(Exit::Failed, error)
        }
        (_, Some(FailureCode::Revoked)) => Failure::from_error(Exit::Failed, error),
        _ => Failure::from_error(Exit::Offline, error),
    }
}

/// Sends a request and returns its reply.
///
/// # Errors
/// What the server refused, or exit code 4 when the connection broke.
pub async fn call<R: Request>(connection: &Connection, request: &R) -> Result<R::Reply, Failure> {
    connection
        .call(request)
        .await
        .map_err(|error| not_answered(&error))
}

/// Where the answers to the server's questions come from.
#[derive(Debug)]
pub enum Answers {
    /// A person, if there is a terminal.
    Person,
    /// Lines of a file.
    Lines(std::vec::IntoIter<String>),
}

/// Carries an authentication to its end: asks what the server asks.
///
/// # Errors
/// When the server refuses, or a question cannot be answered.
pub async fn authenticate<R>(
    connection: &Connection,
    request: &R,
    answers: &mut Answers,
) -> Result<Admitted, Failure>
where
    R: Request<Reply = AuthReply>,
{
    let mut reply = call(connection, request).await?;
    let mut tries = 0;
    loop {
        if let Some(admitted) = reply.admitted {
            return Ok(admitted);
        }
        let Some(question) = reply.question.clone() else {
            return Err(Failure::failed("The server's answer cannot be understood")
                .hint("upgrade this program"));
        };
        let text = crate::cli::output::printable(&question.text);
        let answer = match answers {
            Answers::Lines(lines) => lines.next().ok_or_else(|| {
                Failure::failed(format!("The server asks: {text}"))
                    .hint("add a line with the answer to the --answer-file")
            })?,
            Answers::Person if !prompt::interactive() => {
                return Err(Failure::failed(format!("The server asks: {text}")).hint(
                    "give the answer with --answer-file FILE, or --answer-file - for standard input",
                ));
            }
            Answers::Person if question.secret => prompt::ask_secret(&text)?,
            Answers::Person => prompt::ask(&text)?,
        };
        tries += 1;
        match connection.call(&Answer { answer }).await {
            Ok(next) => reply = next,
            Err(CallError::Failed(failure))
                if failure.code == FailureCode::Unauthenticated
                    && matches!(answers, Answers::Person)
                    && tries < TRIES_MAX =>
            {
                eprintln!("{}", crate::cli::output::printable(&failure.message));
            }
            Err(error) => return Err(not_answered(&error)),
        }
    }
}

/// Finds out how a server is known that a person named by its address alone: by a public authority, or
/// by a fingerprint that the person has compared.
///
/// # Errors
/// When it cannot be reached, or there is nobody to compare.
pub async fn get_to_know(address: &str) -> Result<Authority, Failure> {
    let public = Server {
        address: address.to_owned(),
        authority: Authority::Public,
    };
    match Box::pin(Connection::open(&public.endpoint(), PROGRAM)).await {
        Ok(_) => return Ok(Authority::Public),
        Err(ConnectError::Tls { .. } | ConnectError::Setup(_)) => {}
        Err(error) => return Err(not_connected(&error)),
    }
    // A pin that no certificate has: the refusal tells the one that is shown.
    let probe = Endpoint {
        address: address.to_owned(),
        trust: Trust::Pinned(Fingerprint([0; 32])),
    };
    let found = match Box::pin(Connection::open(&probe, PROGRAM)).await {
        Err(ConnectError::WrongFingerprint { found, .. }) => found,
        Err(error) => return Err(not_connected(&error)),
        Ok(_) => {
            return Err(Failure::failed(format!(
                "The server at {address} cannot be told from any other"
            )));
        }
    };
    if !prompt::interactive() {
        return Err(Failure::failed(format!(
            "The server at {address} is not known to this machine"
        ))
        .caused_by(format!("its fingerprint is {found}"))
        .hint(
            "compare it with a join link of that server (between # and the dot), \
             and give it with --fingerprint, or give a join link as --server",
        ));
    }
    eprintln!("The server at {address} is not known to this machine. Its fingerprint is");
    eprintln!("  {found}");
    eprintln!("It is the right server if its log and its join links (between # and the dot) name the same.");
    let answer = prompt::ask("Is it the same? (yes/no)")?;
    if answer.trim().eq_ignore_ascii_case("yes") {
        Ok(Authority::Fingerprint(found))
    } else {
        Err(Failure::failed("Nothing was sent to the server"))
    }
}
