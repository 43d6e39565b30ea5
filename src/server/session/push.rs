//! What is pushed to one connection: a task that goes on for as long as the session has it.

use tokio::task::AbortHandle;

use super::outbox::Outbox;
use crate::server::store::metadata::Result;

/// A running push; ends when it is dropped.
#[derive(Debug)]
pub struct Push(AbortHandle);

impl Push {
    /// Begins one. When it fails by a fault of the server's, that is logged with what could not be done, and
    /// the connection ends: the device asks for all of it again on another.
    pub fn start(
        outbox: Outbox,
        failed: &'static str,
        work: impl Future<Output = Result<()>> + Send + 'static,
    ) -> Self {
        let task = tokio::spawn(async move {
            if let Err(error) = work.await
                && error.is_fault()
            {
                let cause = std::error::Error::source(&error).map(ToString::to_string);
                tracing::error!(%error, cause, "{failed}");
                outbox.end(&error.to_failure());
            }
        });
        Self(task.abort_handle())
    }
}

impl Drop for Push {
    fn drop(&mut self) {
        self.0.abort();
    }
}
