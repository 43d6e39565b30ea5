//! The server's clock.

use std::time::{SystemTime, UNIX_EPOCH};

use crate::model::Timestamp;

/// Returns the milliseconds since the Unix epoch, negative before it.
#[must_use]
pub fn now_ms() -> i64 {
    let now = SystemTime::now();
    match now.duration_since(UNIX_EPOCH) {
        Ok(since) => i64::try_from(since.as_millis()).unwrap_or(i64::MAX),
        Err(before) => -i64::try_from(before.duration().as_millis()).unwrap_or(i64::MAX),
    }
}

/// Returns milliseconds since the epoch as a moment.
#[must_use]
pub fn timestamp(ms: i64) -> Timestamp {
    let nanos = u32::try_from(ms.rem_euclid(1000)).unwrap_or(0) * 1_000_000;
    Timestamp::new(ms.div_euclid(1000), nanos).unwrap_or_default()
}
