//! Reaching a server and being let in, with every refusal in words that say what to do.

use super::failure::Failure;
use super::output::printable;
use super::prompt;
use crate::agent::config::Authority;
use crate::client::{self, Client, Session, Step};
use crate::model::{Fingerprint, JoinLink};
use crate::protocol::message::{FailureCode, Question};
use crate::protocol::{ConnectError, Connection, Endpoint, Trust};

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
        Self { address: link.address.clone(), authority: Authority::Fingerprint(link.fingerprint) }
    }

    fn endpoint(&self) -> Endpoint {
        let trust = match self.authority {
            Authority::Fingerprint(fingerprint) => Trust::Pinned(fingerprint),
            Authority::Public => Trust::PublicAuthority,
        };
        Endpoint { address: self.address.clone(), trust }
    }

    /// Connects as far as the server's hello, without logging in.
    ///
    /// # Errors
    /// Exit code 4 when the server cannot be reached.
    pub async fn open(&self) -> Result<Connection, Failure> {
        let opened = Box::pin(Connection::open(&self.endpoint(), client::PROGRAM)).await;
        opened.map(|(connection, _)| connection).map_err(|error| Failure::of_connect(&error))
    }

    /// Connects.
    ///
    /// # Errors
    /// Exit code 4 when the server cannot be reached.
    pub async fn connect(&self) -> Result<Client, Failure> {
        Box::pin(Client::connect(&self.endpoint()))
            .await
            .map_err(|error| Failure::of_client(&error))
    }
}

/// Where the answers to the server's questions come from.
#[derive(Debug)]
pub enum Answers {
    /// A person, if there is a terminal.
    Person,
    /// Lines of a file.
    Lines(std::vec::IntoIter<String>),
}

/// Carries a log-in to its end: puts the server's questions to the person.
///
/// # Errors
/// When the server refuses, or a question cannot be answered.
pub async fn admit(
    client: &mut Client,
    first: client::Result<Step>,
    answers: &mut Answers,
) -> Result<Session, Failure> {
    let mut step = first.map_err(|error| Failure::of_client(&error))?;
    let mut tries = 0;
    loop {
        let question = match step {
            Step::Admitted(session) => return Ok(session),
            Step::Question(ref question) => question.clone(),
        };
        let answer = answer(&question, answers)?;
        tries += 1;
        match client.answer(&answer).await {
            Ok(next) => step = next,
            Err(error)
                if error.code() == Some(FailureCode::Unauthenticated)
                    && matches!(answers, Answers::Person)
                    && tries < TRIES_MAX =>
            {
                eprintln!("{}", printable(&error.to_string()));
            }
            Err(error) => return Err(Failure::of_client(&error)),
        }
    }
}

fn answer(question: &Question, answers: &mut Answers) -> Result<String, Failure> {
    let text = printable(&question.text);
    match answers {
        Answers::Lines(lines) => lines.next().ok_or_else(|| {
            Failure::failed(format!("The server asks: {text}"))
                .hint("add a line with the answer to the --answer-file")
        }),
        Answers::Person if !prompt::interactive() => Err(Failure::failed(format!(
            "The server asks: {text}"
        ))
        .hint("give the answer with --answer-file FILE, or --answer-file - for standard input")),
        Answers::Person if question.secret => prompt::ask_secret(&text),
        Answers::Person => prompt::ask(&text),
    }
}

/// Finds out how a server is known that a person named by its address alone: by a public authority, or
/// by a fingerprint that the person has compared.
///
/// # Errors
/// When it cannot be reached, or there is nobody to compare.
pub async fn get_to_know(address: &str) -> Result<Authority, Failure> {
    let public = Server { address: address.to_owned(), authority: Authority::Public };
    match Box::pin(Connection::open(&public.endpoint(), client::PROGRAM)).await {
        Ok(_) => return Ok(Authority::Public),
        Err(ConnectError::Tls { .. } | ConnectError::Setup(_)) => {}
        Err(error) => return Err(Failure::of_connect(&error)),
    }
    // A pin that no certificate has: the refusal tells the one that is shown.
    let probe =
        Endpoint { address: address.to_owned(), trust: Trust::Pinned(Fingerprint([0; 32])) };
    let found = match Box::pin(Connection::open(&probe, client::PROGRAM)).await {
        Err(ConnectError::WrongFingerprint { found, .. }) => found,
        Err(error) => return Err(Failure::of_connect(&error)),
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
    eprintln!(
        "It is the right server if its log and its join links (between # and the dot) name the same."
    );
    let answer = prompt::ask("Is it the same? (yes/no)")?;
    if answer.trim().eq_ignore_ascii_case("yes") {
        Ok(Authority::Fingerprint(found))
    } else {
        Err(Failure::failed("Nothing was sent to the server"))
    }
}
