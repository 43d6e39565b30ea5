//! What settings may say, and how an error in them is told.

use std::fmt::Write as _;

/// The longest name of a device in bytes.
const DEVICE_NAME_LEN_MAX: usize = 64;

/// Checks the name of a device: 1 to 64 bytes of text without control characters or slashes, since
/// it becomes a part of file names.
///
/// # Errors
/// Says what a name may be.
pub fn check_device_name(name: &str) -> Result<(), &'static str> {
    if (1..=DEVICE_NAME_LEN_MAX).contains(&name.len())
        && !name.chars().any(|c| c.is_control() || c == '/' || c == '\\')
        && name.trim() == name
    {
        return Ok(());
    }
    Err(
        "a device name has 1 to 64 bytes, no slashes or control characters, and no space at its ends",
    )
}

/// Returns the first of `name`, `name 2`, `name 3` … that is not taken, shortened at a character
/// boundary where it would become too long.
pub fn free_device_name(name: &str, mut is_taken: impl FnMut(&str) -> bool) -> String {
    let mut candidate = name.to_owned();
    let mut number = 2_u64;
    while is_taken(&candidate) {
        let suffix = format!(" {number}");
        let mut end = name.len().min(DEVICE_NAME_LEN_MAX - suffix.len());
        while !name.is_char_boundary(end) {
            end -= 1;
        }
        candidate = format!("{}{suffix}", name[..end].trim_end());
        number += 1;
    }
    candidate
}

/// Returns whether a text is `HOST:PORT`, an IPv6 address in brackets.
#[must_use]
pub fn is_host_and_port(text: &str) -> bool {
    text.rsplit_once(':').is_some_and(|(host, port)| {
        let bracketed = host.starts_with('[') && host.ends_with(']');
        !host.is_empty()
            && host.len() <= 255
            && host.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'/')
            && (bracketed || !host.contains(':'))
            && port.parse::<u16>().is_ok()
    })
}

/// Where in a file of settings something is wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wrong {
    /// The line, from 1.
    pub line: usize,
    /// The key, where the line has one.
    pub key: Option<String>,
    /// What is wrong with it, on one line.
    pub reason: String,
}

impl Wrong {
    /// Finds the line and the key at a byte of the text.
    #[must_use]
    pub fn at(text: &str, start: usize, reason: &str) -> Self {
        let before = text.get(..start).unwrap_or_default();
        let line = before.matches('\n').count();
        let lines: Vec<&str> = text.lines().take(line + 1).collect();
        // A string on a line of its own is a part of an array: its key stands above it.
        let key = lines
            .iter()
            .rev()
            .find(|line| !line.trim_start().starts_with(['"', '\'', '#']))
            .filter(|line| !line.trim_start().starts_with('['))
            .and_then(|line| line.split_once('='))
            .map(|(key, _)| key.trim().to_owned());
        let reason = reason.lines().collect::<Vec<_>>().join(", ");
        Self { line: line + 1, key, reason }
    }

    /// As [`Wrong::at`], where a key is set; `section.key` where several sections have it.
    #[must_use]
    pub fn at_key(text: &str, key: &str, reason: &str) -> Self {
        let (section, key) = key.split_once('.').unwrap_or(("", key));
        let from = match section {
            "" => 0,
            section => text.find(&format!("[{section}]")).unwrap_or(0),
        };
        let start = text[from..]
            .match_indices(key)
            .map(|(at, _)| from + at)
            .find(|at| {
                let head = text[..*at].rsplit('\n').next().unwrap_or_default().trim();
                head.is_empty() || head.ends_with('.')
            })
            .unwrap_or(0);
        Self::at(text, start, reason)
    }

    /// As [`Wrong::at`], with the reason of the library that reads the text in words for a person:
    /// what was found, what is expected, and an example out of the documented settings.
    #[must_use]
    pub fn of_toml(text: &str, start: usize, reason: &str, documented: &str) -> Self {
        let mut wrong = Self::at(text, start, reason);
        if let Some(reason) = in_plain_words(&wrong, documented) {
            wrong.reason = reason;
        }
        wrong
    }
}

fn in_plain_words(wrong: &Wrong, documented: &str) -> Option<String> {
    let reason = wrong.reason.as_str();
    if let Some(rest) = reason.strip_prefix("unknown field ") {
        let (name, known) = rest.split_once(", expected ")?;
        let known = known.trim_start_matches("one of ").replace(" or ", ", ");
        return Some(format!("there is no key or section {name} here; there are {known}"));
    }
    if let Some(name) = reason.strip_prefix("missing field ") {
        return Some(format!("the key {name} is missing in this section"));
    }
    if let Some(name) = reason.strip_prefix("unknown variant ") {
        let (found, known) = name.split_once(", expected ")?;
        let known = known.trim_start_matches("one of ").replace('`', "\"");
        return Some(format!("found {}, expected {known}", found.replace('`', "\"")));
    }
    let (found, expected) = match reason {
        "wanted string or table" => (None, "a string"),
        "invalid socket address syntax" => (None, "ADDRESS:PORT, an IPv6 address in brackets"),
        reason => {
            let (found, expected) = found_and_expected(reason)?;
            (Some(found), expected)
        }
    };
    let expected = match expected {
        "u16" => "a whole number from 0 to 65535",
        "u32" => "a whole number from 0 to 4294967295",
        "u64" | "usize" => "a whole number from 0 on",
        "f32" | "f64" => "a number",
        "a boolean" => "true or false",
        "a string" | "path string" | "a borrowed string" => "a text in quotes",
        "a sequence" => "a list in brackets",
        other if other.starts_with("struct ") => "a section",
        other => other,
    };
    let mut told = found.map_or_else(String::new, |found| format!("found {found}, "));
    write!(told, "expected {expected}").ok()?;
    if let Some(example) = wrong.key.as_deref().and_then(|key| example_of(key, documented)) {
        write!(told, ", as in: {example}").ok()?;
    }
    Some(told)
}

fn found_and_expected(reason: &str) -> Option<(&str, &str)> {
    let rest =
        reason.strip_prefix("invalid type: ").or_else(|| reason.strip_prefix("invalid value: "))?;
    let (found, expected) = rest.rsplit_once(", expected ")?;
    Some((found.strip_prefix("string ").unwrap_or(found), expected))
}

/// Returns the line of the documented settings that shows a key, in force or behind a comment sign.
fn example_of<'a>(key: &str, documented: &'a str) -> Option<&'a str> {
    documented.lines().map(|line| line.strip_prefix('#').unwrap_or(line)).find(|line| {
        line.split_once('=').is_some_and(|(shown, value)| {
            shown.trim_end() == key && !shown.starts_with(' ') && !value.trim().is_empty()
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_that_is_taken_is_numbered_and_stays_legal() {
        let free =
            |name: &str, taken: &[&str]| free_device_name(name, |name| taken.contains(&name));
        assert_eq!(free("laptop", &[]), "laptop");
        assert_eq!(free("laptop", &["laptop", "laptop 2"]), "laptop 3");
        let long = "é".repeat(32);
        let numbered = free(&long, &[&long]);
        assert_eq!(numbered, format!("{} 2", "é".repeat(31)));
        assert_eq!(check_device_name(&numbered), Ok(()));
    }

    #[test]
    fn the_words_of_the_library_become_plain_ones() {
        let documented = "[a]\ncount = 5\n#name = \"laptop\"\n# x = 1 is no example\n";
        let told = |line: &str, reason: &str| Wrong::of_toml(line, 0, reason, documented).reason;
        assert_eq!(
            told("count = \"x\"", "invalid type: string \"x\", expected u32"),
            "found \"x\", expected a whole number from 0 to 4294967295, as in: count = 5"
        );
        assert_eq!(
            told("name = 5", "invalid type: integer `5`, expected a string"),
            "found integer `5`, expected a text in quotes, as in: name = \"laptop\""
        );
        assert_eq!(
            told("x = y", "invalid type: map, expected a boolean"),
            "found map, expected true or false"
        );
        assert_eq!(
            told("[[folder]]", "missing field `id`"),
            "the key `id` is missing in this section"
        );
        assert_eq!(told("a = 1", "something else"), "something else");
    }
}
