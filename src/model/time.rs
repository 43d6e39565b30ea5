//! Times of files, to the nanosecond, far past and far future included.

use serde::{Deserialize, Deserializer, Serialize};

/// A moment as a file system records it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct Timestamp {
    /// Seconds since the Unix epoch; negative before it.
    pub secs: i64,
    /// Nanoseconds after `secs`: 0 to 999,999,999.
    nanos: u32,
}

impl Timestamp {
    /// Returns the moment `nanos` nanoseconds after `secs`, or nothing when `nanos` is a second
    /// or more.
    #[must_use]
    pub const fn new(secs: i64, nanos: u32) -> Option<Self> {
        if nanos < 1_000_000_000 { Some(Self { secs, nanos }) } else { None }
    }

    /// Returns the nanoseconds after `secs`.
    #[must_use]
    pub const fn nanos(self) -> u32 {
        self.nanos
    }

    /// Returns whole milliseconds since the epoch, saturating.
    #[must_use]
    pub const fn as_millis(self) -> i64 {
        self.secs.saturating_mul(1000).saturating_add((self.nanos / 1_000_000) as i64)
    }
}

impl<'de> Deserialize<'de> for Timestamp {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        struct Raw {
            secs: i64,
            nanos: u32,
        }
        let raw = Raw::deserialize(deserializer)?;
        Self::new(raw.secs, raw.nanos)
            .ok_or_else(|| serde::de::Error::custom("nanoseconds of a second or more"))
    }
}
