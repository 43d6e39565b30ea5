//! The only place where the agent reads clocks.

use std::sync::LazyLock;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use crate::engine::Now;
use crate::model::Timestamp;

static STARTED: LazyLock<Instant> = LazyLock::new(Instant::now);

/// Returns the time of day.
pub(crate) fn wall() -> Timestamp {
    let moment = match SystemTime::now().duration_since(UNIX_EPOCH) {
        Ok(after) => (i64::try_from(after.as_secs()).ok(), after.subsec_nanos()),
        // Before 1970: a machine without a clock. The second is enough.
        Err(before) => (i64::try_from(before.duration().as_secs()).ok().map(|secs| -secs), 0),
    };
    moment.0.and_then(|secs| Timestamp::new(secs, moment.1)).unwrap_or_default()
}

/// Returns the time since the program first asked, on a clock that never goes back.
pub(crate) fn monotonic() -> Duration {
    STARTED.elapsed()
}

/// Returns both, as the engine wants them.
pub(crate) fn now() -> Now {
    Now { ms: u64::try_from(monotonic().as_millis()).unwrap_or(u64::MAX), wall: wall() }
}

/// Returns today's date here, `YYYY-MM-DD`, for conflict copies.
pub(crate) fn today() -> String {
    jiff::Zoned::now().date().to_string()
}
