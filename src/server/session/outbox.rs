//! What a session sends: replies, failures, pushes.

use std::sync::Arc;

use tokio::sync::watch;

use crate::protocol::connection::ServerSender;
use crate::protocol::frame::EncodedFrame;
use crate::protocol::limits::BODY_LEN_MAX;
use crate::protocol::message::{Bye, Failure, FailureCode, Message};
use crate::server::store::StoreError;

/// The sending half of a connection, shared by all that answer on it.
#[derive(Debug, Clone)]
pub struct Outbox {
    sender: ServerSender,
    end: Arc<watch::Sender<Option<Bye>>>,
}

impl Outbox {
    /// Sends through `sender`; `end` is how a part of the session ends the whole of it.
    pub fn new(sender: ServerSender, end: watch::Sender<Option<Bye>>) -> Self {
        Self {
            sender,
            end: Arc::new(end),
        }
    }

    /// Answers a request. A connection that is gone needs no answer: the session notices by itself.
    pub async fn reply<M: Message>(&self, request: u32, message: &M) {
        match EncodedFrame::new(request, message, BODY_LEN_MAX) {
            Ok(frame) => self.sender.send(frame).await.unwrap_or_default(),
            Err(error) => {
                tracing::error!(%error, "a reply could not be encoded");
                let failure = Failure {
                    code: FailureCode::TooLarge,
                    message: "The reply would be too long".to_owned(),
                };
                if let Ok(frame) = EncodedFrame::new(request, &failure, BODY_LEN_MAX) {
                    self.sender.send(frame).await.unwrap_or_default();
                }
            }
        }
    }

    /// Answers a request that failed; request 0 is the connection itself.
    pub async fn fail(&self, request: u32, error: &StoreError) {
        self.reply(request, &error.to_failure()).await;
    }

    /// Sends a push.
    ///
    /// # Errors
    /// When the connection is gone.
    pub async fn push(&self, frame: EncodedFrame) -> Result<(), StoreError> {
        self.sender.send(frame).await.map_err(|_| StoreError::Closed)
    }

    /// Ends the connection for a reason.
    pub fn end(&self, failure: Failure) {
        self.end.send_replace(Some(Bye {
            code: failure.code,
            message: failure.message,
        }));
    }
}
