//! How conflict copies are named and known by their names, and what comes back where its name is taken.

use super::Name;

/// Returns `NAME (conflicted copy DEVICE DATE).EXT`, with ` 2`, ` 3` … before the `)` for
/// `attempt` 2, 3 …; `date` is `YYYY-MM-DD`.
///
/// EXT is what follows the last dot, unless the name begins with that dot. NAME is shortened at a
/// character boundary where the whole would pass 255 bytes; an extension too long to keep counts as
/// part of NAME. Slashes and NUL in `device` become `-`.
#[must_use]
pub fn conflict_name(name: &Name, device: &str, date: &str, attempt: u32) -> Name {
    let device: String =
        device.chars().map(|c| if c == '/' || c == '\0' { '-' } else { c }).take(40).collect();
    // At most 18 + 40 * 4 + 1 + 10 bytes (a date of the driver's is 10).
    marked(name, &format!("conflicted copy {device} {date}"), attempt)
}

/// Returns `NAME (restored DATE).EXT`, numbered and shortened as [`conflict_name`] does.
#[must_use]
pub fn restored_name(name: &Name, date: &str, attempt: u32) -> Name {
    marked(name, &format!("restored {date}"), attempt)
}

/// Returns `NAME (DEVICE DATE).EXT`, numbered and shortened as [`conflict_name`] does: what a conflict
/// copy is called that was kept for good.
#[must_use]
pub fn kept_name(name: &Name, device: &str, date: &str, attempt: u32) -> Name {
    let device: String =
        device.chars().map(|c| if c == '/' || c == '\0' { '-' } else { c }).take(40).collect();
    marked(name, &format!("{device} {date}"), attempt)
}

fn marked(name: &Name, words: &str, attempt: u32) -> Name {
    let number = if attempt > 1 { format!(" {attempt}") } else { String::new() };
    let mark = format!(" ({words}{number})");
    let bytes = name.as_bytes();
    let (stem, extension) = match bytes.iter().rposition(|&byte| byte == b'.') {
        Some(dot) if dot > 0 && bytes.len() - dot <= 32 => bytes.split_at(dot),
        _ => (bytes, &b""[..]),
    };
    let room = Name::MAX_LEN.saturating_sub(mark.len() + extension.len());
    let mut copy = shorten(stem, room).to_vec();
    copy.extend_from_slice(mark.as_bytes());
    copy.extend_from_slice(extension);
    // The words have at most 189 bytes, what is around them 14, an extension 32: together under 255,
    // so the bytes are always a name.
    Name::new(copy).unwrap_or_else(|_| name.clone())
}

/// Cuts `stem` to at most `room` bytes, not inside a UTF-8 sequence.
fn shorten(stem: &[u8], room: usize) -> &[u8] {
    if stem.len() <= room {
        return stem;
    }
    let is_continuation = |byte: u8| byte & 0b1100_0000 == 0b1000_0000;
    let mut end = room;
    // A UTF-8 sequence has at most three continuation bytes; more are no UTF-8 and may be cut.
    while end > room.saturating_sub(3) && end > 0 && is_continuation(stem[end]) {
        end -= 1;
    }
    &stem[..end]
}

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
    read_copy_name(name).map(|copy| copy.original)
}

/// Reads the name of a conflict copy, if it looks like one:
/// `STEM (conflicted copy DEVICE YYYY-MM-DD[ N]).EXT`. A stem that had to be shortened stays so.
#[must_use]
pub fn read_copy_name(name: &Name) -> Option<CopyName> {
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

    #[track_caller]
    fn check(name: &str, attempt: u32, expected: &str) {
        let name = Name::try_from(name).unwrap();
        let copy = conflict_name(&name, "pi", "2026-11-23", attempt);
        assert_eq!(copy.to_string(), expected);
    }

    #[test]
    fn the_mark_goes_before_the_extension() {
        check("notes.txt", 1, "notes (conflicted copy pi 2026-11-23).txt");
        check("notes.txt", 2, "notes (conflicted copy pi 2026-11-23 2).txt");
        check("Makefile", 1, "Makefile (conflicted copy pi 2026-11-23)");
        check(".bashrc", 1, ".bashrc (conflicted copy pi 2026-11-23)");
        check("a.tar.gz", 1, "a.tar (conflicted copy pi 2026-11-23).gz");
    }

    #[test]
    fn a_long_name_is_cut_at_a_character() {
        let name = Name::try_from(format!("{}.jpg", "é".repeat(125)).as_str()).unwrap();
        assert_eq!(name.as_bytes().len(), 254);
        let copy = conflict_name(&name, "pi", "2026-11-23", 3).to_string();
        assert!(copy.len() <= 255 && copy.len() >= 253, "{}", copy.len());
        assert!(copy.ends_with("é (conflicted copy pi 2026-11-23 3).jpg"), "{copy}");
        let raw = Name::new(vec![0xff; 255]).unwrap();
        assert!(conflict_name(&raw, "a/b", "2026-11-23", 1).as_bytes().len() <= 255);
        let wide = "𝄞".repeat(300);
        let copy = conflict_name(&raw, &wide, "2026-11-23", u32::MAX);
        assert!(copy.as_bytes().len() <= 255 && copy != raw);
    }

    #[test]
    fn what_is_kept_for_good_is_no_conflict_copy_any_more() {
        let name = Name::try_from("notes.txt").unwrap();
        let shown = |attempt| kept_name(&name, "my/pi", "2026-11-24", attempt).to_string();
        assert_eq!(shown(1), "notes (my-pi 2026-11-24).txt");
        assert_eq!(shown(3), "notes (my-pi 2026-11-24 3).txt");
    }

    #[test]
    fn what_comes_back_beside_another_says_so() {
        let name = Name::try_from("notes.txt").unwrap();
        let shown = |attempt| restored_name(&name, "2026-11-24", attempt).to_string();
        assert_eq!(shown(1), "notes (restored 2026-11-24).txt");
        assert_eq!(shown(2), "notes (restored 2026-11-24 2).txt");
    }

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
