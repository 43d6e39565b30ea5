//! How much of the room that a user has on the server is in use.

use serde::{Deserialize, Serialize};

/// The sum of the sizes of the files in all drives that a user owns, and its limit. Sizes are those of the
/// files as they are now, in bytes: earlier versions, directories and links do not count, and a file
/// that is there twice counts twice.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Usage {
    /// The sum.
    pub used: u64,
    /// Its limit; none where there is none.
    #[serde(default)]
    pub quota: Option<u64>,
}

impl Usage {
    /// More than this no server counts, so without a quota this is the limit.
    pub const USED_MAX: u64 = i64::MAX as u64;

    /// Returns how much there is still room for; nothing where there is no limit.
    #[must_use]
    pub fn left(&self) -> Option<u64> {
        self.quota.map(|quota| quota.saturating_sub(self.used))
    }

    /// Returns whether the sum may grow by so much. By nothing it always may.
    #[must_use]
    pub fn has_room_for(&self, growth: u64) -> bool {
        let room = self.quota.unwrap_or(Self::USED_MAX).saturating_sub(self.used);
        growth == 0 || growth <= room
    }
}

/// Returns a number of bytes for a person: `812 B`, `3.1 GiB`.
#[must_use]
pub fn byte_count(count: u64) -> String {
    const UNITS: [&str; 6] = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    if count < 1024 {
        return format!("{count} B");
    }
    let mut whole = count;
    let mut rest = 0;
    let mut unit = "";
    for name in UNITS {
        if whole < 1024 {
            break;
        }
        rest = whole % 1024;
        whole /= 1024;
        unit = name;
    }
    format!("{whole}.{} {unit}", rest * 10 / 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_does_not_grow_always_has_room() {
        let over = Usage { used: 12, quota: Some(10) };
        assert_eq!(
            (over.left(), over.has_room_for(0), over.has_room_for(1)),
            (Some(0), true, false)
        );
        let under = Usage { used: 8, quota: Some(10) };
        assert!(under.has_room_for(2) && !under.has_room_for(3));
        let unlimited = Usage { used: 8, quota: None };
        assert!(unlimited.left().is_none() && unlimited.has_room_for(1 << 40));
        assert!(!unlimited.has_room_for(Usage::USED_MAX));
    }
}
