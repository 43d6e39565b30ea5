//! Which way changes of a folder go on this device (the key `direction` of its settings), and what differs
//! and stays so because of that.

use serde::{Deserialize, Serialize};

/// Which way changes go between this device and the drive.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Flow {
    /// Both ways.
    #[default]
    Both,
    /// What others change comes here; what is changed here stays here.
    ReceiveOnly,
    /// What is changed here goes to the drive; what others change stays there.
    SendOnly,
}

impl Flow {
    /// Returns what the settings call it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Both => "both",
            Self::ReceiveOnly => "receive-only",
            Self::SendOnly => "send-only",
        }
    }
}

/// How a node differs from the other side, told of the side on which it was changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Difference {
    /// It is there only.
    New,
    /// It is gone there.
    Gone,
    /// It is elsewhere, or has another name.
    Moved,
    /// It holds something else.
    Edited,
    /// It holds something else, and so does the other side: neither has the other's.
    Both,
    /// Its permissions or its time differ.
    Touched,
}
