//! Which changes of a drive are meant when one device's burst of them is spoken of.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::Rev;

/// A batch: the changes between two revs, both included, that were made by the device that made the
/// last of them. Written `FIRST-LAST`, or one number where it is a single change.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct BatchId {
    /// The rev of the first change.
    pub first: Rev,
    /// The rev of the last change.
    pub last: Rev,
}

impl BatchId {
    /// Returns whether a change can have such a rev, and the last comes after the first.
    #[must_use]
    pub fn is_legal(self) -> bool {
        Rev::ZERO < self.first && self.first <= self.last && self.last <= Rev::MAX
    }
}

impl fmt::Display for BatchId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.first == self.last {
            return self.last.fmt(f);
        }
        write!(f, "{}-{}", self.first, self.last)
    }
}

/// A text that names no batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "A batch is named by the number of its change, or FIRST-LAST, as `picloud undo` lists them"
)]
pub struct BatchIdError;

impl FromStr for BatchId {
    type Err = BatchIdError;

    fn from_str(text: &str) -> Result<Self, BatchIdError> {
        let rev = |digits: &str| {
            let plain = digits.bytes().all(|byte| byte.is_ascii_digit());
            digits.parse().ok().filter(|_| plain).map(Rev).ok_or(BatchIdError)
        };
        let (first, last) = text.split_once('-').unwrap_or((text, text));
        let batch = Self { first: rev(first)?, last: rev(last)? };
        if batch.is_legal() { Ok(batch) } else { Err(BatchIdError) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_batch_is_read_as_it_is_written_and_nothing_else_is() {
        for text in ["1", "12-340"] {
            assert_eq!(text.parse::<BatchId>().unwrap().to_string(), text);
        }
        for text in ["", "0", "-3", "3-", "5-4", "+1", "1-2-3", "a", "1-9223372036854775808"] {
            assert_eq!(text.parse::<BatchId>(), Err(BatchIdError), "{text}");
        }
    }
}
