//! What a session sends: replies, failures, pushes.

use std::time::Duration;

use tokio::time::timeout;

use crate::protocol::message::{Failure, FailureCode, Message};
use crate::protocol::{EncodedFrame, FrameSender, SendError};
use crate::server::store::StoreError;

/// The sending half of a connection, shared by all that answer on it.
#[derive(Debug, Clone)]
pub struct Outbox {
    sender: FrameSender,
}

impl Outbox {
    /// Sends through `sender`.
    pub fn new(sender: FrameSender) -> Self {
        Self { sender }
    }

    /// Answers a request. A connection that is gone needs no answer: the session notices by itself.
    pub async fn reply<M: Message>(&self, request: u32, message: &M) {
        if let Err(SendError::Message(error)) = self.sender.reply(request, message).await {
            tracing::error!(%error, "a reply could not be encoded");
            let code = FailureCode::TooLarge;
            let failed = self.sender.fail(request, code, "The reply would be too long");
            failed.await.unwrap_or_default();
        }
    }

    /// Answers a request that failed.
    pub async fn fail(&self, request: u32, error: &StoreError) {
        let failure = error.to_failure();
        let failed = self.sender.fail(request, failure.code, &failure.message);
        failed.await.unwrap_or_default();
    }

    /// Sends a push.
    ///
    /// # Errors
    /// When the connection is gone.
    pub async fn push(&self, frame: EncodedFrame) -> Result<(), StoreError> {
        self.sender.push_encoded(frame).await.map_err(|_| StoreError::Closed)
    }

    /// Returns the connection's own end of it.
    pub fn sender(&self) -> FrameSender {
        self.sender.clone()
    }

    /// Ends the connection now, and says why.
    pub fn end(&self, failure: &Failure) {
        self.sender.close(failure.code, &failure.message);
    }

    /// Ends the connection now: the other side broke the protocol.
    pub fn refuse(&self, message: &str) {
        self.sender.refuse(FailureCode::Malformed, message);
    }

    /// Ends the connection once everything queued is sent, and waits for that, for a while.
    pub async fn finish(&self) {
        self.sender.finish();
        timeout(Duration::from_secs(2), self.sender.closed()).await.ok();
    }
}
