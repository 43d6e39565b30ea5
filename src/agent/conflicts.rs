//! Recognising conflict copies by their names.

use crate::model::{Name, conflict_name};

/// What the name of a conflict copy says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CopyName {
    /// The name of which it is a copy.
    pub original: Name,
    /// The device whose version it was.
    pub device: String,
    /// When it was set aside, `YYYY-MM-DD`.
    pub date: String,
}

/// Returns the name of which `name` is a conflict copy, if it looks like one.
#[must_use]
pub fn original_of(name: &Name) -> Option<Name> {
    read(name).map(|copy| copy.original)
}

/// Reads the name of a conflict copy, if it looks like one:
/// `STEM (conflicted copy DEVICE YYYY-MM-DD[ N]).EXT`. A stem that had to be shortened stays so.
#[must_use]
pub fn read(name: &Name) -> Option<CopyName> {
    const MARK: &[u8] = b" (conflicted copy ";
    let bytes = name.as_bytes();
    let start = bytes.windows(MARK.len()).rposition(|window| window == MARK)?;
    let after = &bytes[start + MARK.len()..];
    let end = after.iter().position(|&byte| byte == b')')?;
    let text = std::str::from_utf8(&after[..end]).ok()?;
    let (device, last) = text.rsplit_once(' ')?;
    let (device, date, attempt) = match last.parse::<u32>() {
        Ok(attempt) => {
            let (device, date) = device.rsplit_once(' ')?;
            (device, date, attempt)
        }
        Err(_) => (device, last, 1),
    };
    let date_bytes = date.as_bytes();
    let is_date = date_bytes.len() == 10
        && date_bytes.iter().enumerate().all(|(index, byte)| match index {
            4 | 7 => *byte == b'-',
            _ => byte.is_ascii_digit(),
        });
    let original = Name::new([&bytes[..start], &after[end + 1..]].concat()).ok()?;
    // Made again it must be the same: else it is a name that a person gave.
    (is_date && conflict_name(&original, device, date, attempt) == *name).then(|| CopyName {
        original,
        device: device.to_owned(),
        date: date.to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_rule_makes_is_recognised_and_nothing_else() {
        for (name, device, attempt) in [
            ("notes.txt", "pi", 1),
            ("notes.txt", "my old pi 2", 12),
            ("Makefile", "pi", 2),
            (".bashrc", "pi", 1),
            ("a (conflicted copy pi 2026-01-01).txt", "x", 1),
        ] {
            let name = Name::try_from(name).unwrap();
            let copy = conflict_name(&name, device, "2026-11-23", attempt);
            assert_eq!(original_of(&copy), Some(name), "{copy}");
        }
        for not in [
            "notes.txt",
            "notes (conflicted copy).txt",
            "notes (conflicted copy pi yesterday).txt",
            "notes (conflicted copy pi 2026-11-23",
            "notes (conflicted copy pi 2026-11-23 1).txt",
        ] {
            assert_eq!(original_of(&Name::try_from(not).unwrap()), None, "{not}");
        }
    }
}
