//! Notes of contents on their way, passed on from the device that sends one to the others of the
//! drive.
//!
//! Nothing is kept of a note. One that a connection has no room for now is dropped, and a device that
//! sends more of them than its allowance has those above it dropped: they are hints.

use std::time::Instant;

use super::{Session, malformed};
use crate::protocol::EncodedFrame;
use crate::protocol::limits::{BODY_LEN_MAX, LIST_PART_LEN_MAX};
use crate::protocol::message::Coming;
use crate::server::store::metadata::Result;

/// What a connection may send of notes at once, in bytes: the lists of two files of 7 GiB.
const BURST: u64 = 2 * LIST_PART_LEN_MAX as u64;

/// What it may send in a second: the list of a file of 1.7 GiB, or the notes of dozens of uploads.
const PER_S: u64 = BURST / 8;

/// What the shortest note counts as.
const NOTE_COST: u64 = 1024;

/// How many bytes of notes a connection may send.
#[derive(Debug)]
pub struct Allowance {
    bytes: u64,
    filled_at: Instant,
}

impl Allowance {
    pub fn new() -> Self {
        Self { bytes: BURST, filled_at: Instant::now() }
    }

    /// Takes so many bytes off, if there are.
    fn take(&mut self, len: u64, now: Instant) -> bool {
        let passed = now.saturating_duration_since(self.filled_at).as_millis();
        let gained = u64::try_from(passed).unwrap_or(u64::MAX).saturating_mul(PER_S) / 1000;
        if gained > 0 {
            self.bytes = self.bytes.saturating_add(gained).min(BURST);
            self.filled_at = now;
        }
        let is_allowed = self.bytes >= len;
        if is_allowed {
            self.bytes -= len;
        }
        is_allowed
    }
}

impl Session {
    /// Passes a note on.
    pub(super) fn coming(&mut self, note: &Coming) -> Result<()> {
        note.check().map_err(malformed)?;
        // A drive that is gone, or was never the device's, has nobody to tell.
        let Ok(drive) = self.drive(note.drive) else {
            return Ok(());
        };
        let len = note.extents.as_ref().map_or(0, Vec::len) as u64 + NOTE_COST;
        if self.notes.take(len, Instant::now()) {
            let frame = EncodedFrame::new(0, note, BODY_LEN_MAX)
                .map_err(|error| malformed(error.to_string()))?;
            self.shared.hub.pass_on(drive, self.member.device.num, &frame);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn over_time_no_more_is_passed_on_than_the_allowance() {
        let start = Instant::now();
        let mut notes = Allowance { bytes: BURST, filled_at: start };
        let mut passed = 0;
        for ms in 0..20_000 {
            let now = start + Duration::from_millis(ms);
            while notes.take(10_000, now) {
                passed += 10_000;
            }
        }
        assert!((BURST + 19 * PER_S..=BURST + 20 * PER_S).contains(&passed), "{passed}");
    }
}
