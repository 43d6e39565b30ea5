//! Names that not every system can hold. They are legal in a drive: each device stores what it can, and
//! shows the rest as problems; a person may want to know of them before.

use unicode_normalization::{UnicodeNormalization as _, is_nfc};

/// What Windows keeps for devices, whatever follows a dot.
const RESERVED: [&str; 6] = ["CON", "PRN", "AUX", "NUL", "CONIN$", "CONOUT$"];

/// Returns why some system cannot hold this name, if there is such a system.
#[must_use]
pub fn why_not_portable(name: &[u8]) -> Option<&'static str> {
    let Ok(text) = std::str::from_utf8(name) else {
        return Some("it is not UTF-8");
    };
    if text.chars().any(|c| c.is_control() || r#"<>:"\|?*"#.contains(c)) {
        return Some("Windows allows none of < > : \" \\ | ? * and control characters");
    }
    if text.ends_with(['.', ' ']) {
        return Some("Windows allows no dot or space at the end");
    }
    let stem = text.split('.').next().unwrap_or_default().trim_end();
    let is_numbered = |prefix: &str| {
        let start = stem.get(..3).is_some_and(|start| start.eq_ignore_ascii_case(prefix));
        let rest = stem.get(3..).unwrap_or_default();
        start
            && matches!(rest, "1" | "2" | "3" | "4" | "5" | "6" | "7" | "8" | "9" | "¹" | "²" | "³")
    };
    let is_reserved = RESERVED.iter().any(|reserved| stem.eq_ignore_ascii_case(reserved));
    if is_reserved || is_numbered("COM") || is_numbered("LPT") {
        return Some("Windows keeps that name for a device");
    }
    None
}

/// Returns what two names have in common that are one name on a system which does not tell upper from
/// lower case, or one Unicode form from another.
#[must_use]
pub fn folded(name: &[u8]) -> Vec<u8> {
    match std::str::from_utf8(name) {
        Ok(text) if text.is_ascii() => name.to_ascii_lowercase(),
        Ok(text) if is_nfc(text) => text.to_lowercase().nfc().collect::<String>().into_bytes(),
        Ok(text) => {
            let composed: String = text.nfc().collect();
            composed.to_lowercase().nfc().collect::<String>().into_bytes()
        }
        Err(_) => name.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_windows_cannot_hold_is_told_and_nothing_else() {
        for name in [
            "a:b",
            "con",
            "Aux.txt",
            "NUL.tar.gz",
            "com1",
            "LPT9.log",
            "COM¹",
            "end.",
            "end ",
            "tab\t",
            "what?",
            "con .txt",
        ] {
            assert!(why_not_portable(name.as_bytes()).is_some(), "{name:?}");
        }
        assert!(why_not_portable(b"\xff").is_some());
        for name in [
            "console", "com", "com10", "COM0", ".con.txt", "a.con", "été", "雪", "..a", " a",
            "COMÉ", "lpté",
        ] {
            assert_eq!(why_not_portable(name.as_bytes()), None, "{name:?}");
        }
    }

    #[test]
    fn names_that_differ_in_case_or_form_only_fold_to_the_same() {
        assert_eq!(folded(b"ReadMe"), folded(b"README"));
        assert_eq!(folded("é".as_bytes()), folded("E\u{301}".as_bytes()));
        assert_ne!(folded(b"a"), folded(b"b"));
        assert_ne!(folded(b"\xff"), folded(b"\xfe"));
    }
}
