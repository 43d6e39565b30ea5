//! The client library: connect to a server, log in, and list, put, get and watch files.
//!
//! ```no_run
//! use picloud::client::{Client, Step};
//! use picloud::model::{JoinLink, RelPath};
//! use picloud::protocol::{Endpoint, Trust};
//!
//! # async fn run(link: &str) -> Result<(), Box<dyn std::error::Error>> {
//! let link = JoinLink::parse(link)?;
//! let endpoint = Endpoint {
//!     address: link.address.clone(),
//!     trust: Trust::Pinned(link.fingerprint),
//! };
//! let mut client = Client::connect(&endpoint).await?;
//! let Step::Admitted(session) = client.join(&link.secret, "laptop").await? else {
//!     return Err("the server asks a question: see Client::answer".into());
//! };
//! let remote = RelPath::parse(b"notes/today.txt")?;
//! session.put_file("today.txt".as_ref(), &remote).await?;
//! # Ok(())
//! # }
//! ```
//!
//! Every method may be called from several tasks at once; requests are pipelined over the one
//! connection. Nothing is retried behind the caller's back except what the server asks to be
//! planned again (somebody else changed the same directory meanwhile), and that a bounded number of
//! times. All paths are relative to the drive's root. The agent uses [`transfer`] directly.

mod files;
mod local;
mod manifest;
mod session;
pub mod transfer;
mod watch;

use std::io;
use std::path::PathBuf;

use tokio::sync::mpsc;

pub use files::{Entry, Listing, PutOptions, Stored};
pub(crate) use local::open_regular;
pub use session::{Credentials, Session};
pub use transfer::TransferError;
pub use watch::{Watch, WatchEvent};

use crate::model::{DeviceId, Refusal, RelPath, byte_count};
use crate::protocol::message::{
    Answer, AuthReply, FailureCode, Join, Login, Question, Register, Request, Resume,
};
use crate::protocol::{CallError, CloseReason, ConnectError, Connection, Endpoint, Push};

/// What this library calls itself in its hello.
pub const PROGRAM: &str = concat!("picloud/", env!("CARGO_PKG_VERSION"));

/// Why something could not be done.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ClientError {
    /// No connection came about.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// The server refused, or the connection ended.
    #[error(transparent)]
    Call(#[from] CallError),
    /// The content of a file could not be moved.
    #[error(transparent)]
    Transfer(TransferError),
    /// There is no such file or directory in the drive.
    #[error("There is no \"{path}\" in the drive")]
    NotFound {
        /// The path.
        path: RelPath,
    },
    /// A file was needed.
    #[error("\"{path}\" is a directory")]
    IsDirectory {
        /// The path.
        path: RelPath,
    },
    /// A directory was needed.
    #[error("\"{path}\" is not a directory")]
    NotADirectory {
        /// The path.
        path: RelPath,
    },
    /// A regular file was needed.
    #[error("\"{path}\" is a symbolic link")]
    IsLink {
        /// The path.
        path: RelPath,
    },
    /// The root was named where something below it was needed.
    #[error("The drive's root itself is no file: name a path below it")]
    Root,
    /// The server did not accept the change.
    #[error("Cannot change \"{path}\": {refusal}")]
    Refused {
        /// The path.
        path: RelPath,
        /// Why.
        refusal: Refusal,
    },
    /// The account has no more room on the server.
    #[error(
        "Cannot put \"{path}\": over quota: it needs {} on the server, where {} are left; delete something, \
         or ask whoever runs the server for more",
        byte_count(*needs),
        byte_count(*left)
    )]
    OverQuota {
        /// The path.
        path: RelPath,
        /// How many bytes more it would make used.
        needs: u64,
        /// How many are left.
        left: u64,
    },
    /// Something on this machine failed.
    #[error("Cannot {action} {path:?}")]
    Local {
        /// What was tried.
        action: &'static str,
        /// With what.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
    /// A file changed each time it was read.
    #[error("{path:?} is being written to: try again when it is quiet")]
    Unquiet {
        /// The file.
        path: PathBuf,
    },
    /// The session is watching already.
    #[error("This session is watching already: open another one")]
    Watching,
    /// The server broke the protocol.
    #[error("The server's answer makes no sense: {0}")]
    Nonsense(&'static str),
}

impl From<TransferError> for ClientError {
    fn from(error: TransferError) -> Self {
        match error {
            TransferError::Call(error) => Self::Call(error),
            other => Self::Transfer(other),
        }
    }
}

impl ClientError {
    /// Returns whether the server just could not be reached.
    #[must_use]
    pub fn is_offline(&self) -> bool {
        match self {
            Self::Connect(error) => error.is_offline(),
            Self::Call(CallError::Closed(reason)) => reason.code().is_none(),
            _ => false,
        }
    }

    /// Returns the server's code, where it gave one.
    #[must_use]
    pub fn code(&self) -> Option<FailureCode> {
        match self {
            Self::Call(CallError::Failed(failure)) => Some(failure.code),
            Self::Call(CallError::Closed(reason)) => CloseReason::code(reason),
            Self::Connect(ConnectError::Refused(failure)) => Some(failure.code),
            _ => None,
        }
    }
}

/// The result of everything here.
pub type Result<T, E = ClientError> = std::result::Result<T, E>;

/// A connection that nobody has logged in on yet.
#[derive(Debug)]
pub struct Client {
    connection: Connection,
    pushes: Option<mpsc::Receiver<Push>>,
}

/// What a try to log in came to.
#[derive(Debug)]
pub enum Step {
    /// The device is in.
    Admitted(Session),
    /// The server wants to know one more thing: put it to the person and call [`Client::answer`].
    Question(Question),
}

impl Client {
    /// Connects to a server.
    ///
    /// # Errors
    /// See [`ConnectError`].
    pub async fn connect(endpoint: &Endpoint) -> Result<Self> {
        let (connection, pushes) = Connection::open(endpoint, PROGRAM).await?;
        Ok(Self::over(connection, pushes))
    }

    /// Uses a connection that is open already.
    #[must_use]
    pub const fn over(connection: Connection, pushes: mpsc::Receiver<Push>) -> Self {
        Self { connection, pushes: Some(pushes) }
    }

    /// Returns the connection.
    #[must_use]
    pub const fn connection(&self) -> &Connection {
        &self.connection
    }

    /// Joins this machine as a new device, with the one-time secret of a join link.
    ///
    /// # Errors
    /// When the secret is wrong, used up or expired. Another try is possible.
    pub async fn join(&mut self, secret: &[u8; 32], device_name: &str) -> Result<Step> {
        self.authenticate(&Join { secret: secret.to_vec(), device_name: device_name.to_owned() })
            .await
    }

    /// Adds this machine as a new device by password.
    ///
    /// # Errors
    /// When the user or password is wrong. Another try is possible.
    pub async fn login(&mut self, user: &str, password: &str, device_name: &str) -> Result<Step> {
        self.authenticate(&Login {
            user: user.to_owned(),
            password: password.to_owned(),
            device_name: device_name.to_owned(),
        })
        .await
    }

    /// Makes an account and adds this machine to it; `secret` is that of an invitation, where the
    /// server wants one.
    ///
    /// # Errors
    /// When the name is taken, or the server does not let one register.
    pub async fn register(
        &mut self,
        user: &str,
        password: &str,
        secret: Option<&[u8; 32]>,
        device_name: &str,
    ) -> Result<Step> {
        self.authenticate(&Register {
            user: user.to_owned(),
            password: password.to_owned(),
            secret: secret.map(|secret| secret.to_vec()),
            device_name: device_name.to_owned(),
        })
        .await
    }

    /// Answers the question of the last [`Step`].
    ///
    /// # Errors
    /// When the answer is wrong. A few other tries are possible.
    pub async fn answer(&mut self, answer: &str) -> Result<Step> {
        self.authenticate(&Answer { answer: answer.to_owned() }).await
    }

    /// Continues as a device that was admitted before.
    ///
    /// # Errors
    /// When the token is not the device's, or the device was revoked ([`FailureCode::Revoked`]).
    pub async fn resume(&mut self, device: DeviceId, token: &[u8]) -> Result<Session> {
        let request = Resume { device, token: token.to_vec() };
        match self.authenticate(&request).await? {
            Step::Admitted(session) => Ok(session),
            Step::Question(_) => Err(ClientError::Nonsense("a question to a known device")),
        }
    }

    async fn authenticate<R: Request<Reply = AuthReply>>(&mut self, request: &R) -> Result<Step> {
        let reply = self.connection.call(request).await?;
        match (reply.admitted, reply.question) {
            (Some(admitted), None) => {
                let pushes = self.pushes.take();
                let session = Session::new(self.connection.clone(), pushes, admitted)?;
                Ok(Step::Admitted(session))
            }
            (None, Some(question)) => Ok(Step::Question(question)),
            _ => Err(ClientError::Nonsense("neither admitted nor asked")),
        }
    }
}
