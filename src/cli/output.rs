//! How answers look: on a terminal with a little colour, elsewhere plain, with `--json` one object
//! per line.

use std::io::{self, IsTerminal, Write};

use serde::Serialize;

pub use crate::checkup::{bytes, count, counted};

/// Where answers go, and how they may look.
#[derive(Debug, Clone, Copy)]
pub struct Output {
    json: bool,
    live: bool,
    colour: bool,
}

/// What a text is, for its colour.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tone {
    /// As it should be.
    Good,
    /// Worth a look, or waiting.
    Wait,
    /// Needs a person.
    Bad,
    /// Less important.
    Faint,
}

impl Output {
    /// Looks at standard output and the environment.
    #[must_use]
    pub fn detect(json: bool) -> Self {
        let set = |name| std::env::var_os(name).is_some_and(|value| !value.is_empty());
        let dumb = std::env::var_os("TERM").is_none_or(|term| term == "dumb");
        let terminal = io::stdout().is_terminal() && !json;
        Self {
            json,
            // A dumb terminal cannot move its cursor; NO_COLOR is about colour alone.
            live: terminal && !dumb,
            colour: terminal && !dumb && !set("NO_COLOR"),
        }
    }

    /// A terminal without colours, for tests.
    #[cfg(test)]
    pub(crate) const COLOURLESS: Self = Self { json: false, live: true, colour: false };

    /// Plain text, for tests.
    #[cfg(test)]
    pub(crate) const PLAIN: Self = Self { json: false, live: false, colour: false };

    /// Whether the answer is to be JSON.
    #[must_use]
    pub const fn json(&self) -> bool {
        self.json
    }

    /// Whether a person watches: only then are there bars and lines that change.
    #[must_use]
    pub const fn live(&self) -> bool {
        self.live
    }

    /// Returns how many columns the terminal has; nothing where there is none.
    #[must_use]
    pub fn columns(&self) -> Option<usize> {
        self.live.then(|| size().0).flatten()
    }

    /// Returns how many rows the terminal has, if there is one.
    #[must_use]
    pub fn rows() -> Option<usize> {
        size().1
    }

    /// Returns `text` in the colour of `tone`, where there is colour.
    #[must_use]
    pub fn paint(&self, tone: Tone, text: &str) -> String {
        if !self.colour {
            return text.to_owned();
        }
        let code = match tone {
            Tone::Good => "32",
            Tone::Wait => "33",
            Tone::Bad => "31",
            Tone::Faint => "2",
        };
        format!("\x1b[{code}m{text}\x1b[0m")
    }

    /// Writes one object of the answer.
    ///
    /// # Errors
    /// When nobody reads any more.
    pub fn object(&self, value: &impl Serialize) -> io::Result<()> {
        let line = serde_json::to_string(value)?;
        self.line(&line)
    }

    /// Writes one line of the answer.
    ///
    /// # Errors
    /// When nobody reads any more.
    pub fn line(&self, line: &str) -> io::Result<()> {
        let mut out = io::stdout().lock();
        writeln!(out, "{line}")?;
        out.flush()
    }
}

/// Returns the columns and rows of the terminal: as the environment says, else as the terminal does.
fn size() -> (Option<usize>, Option<usize>) {
    let told = |name| std::env::var(name).ok()?.parse().ok().filter(|size: &usize| *size > 0);
    let asked = rustix::termios::tcgetwinsize(io::stdout()).ok();
    let asked = asked.map(|size| (usize::from(size.ws_col), usize::from(size.ws_row)));
    let or_asked =
        |told: Option<usize>, asked: Option<usize>| told.or(asked.filter(|size| *size > 0));
    (
        or_asked(told("COLUMNS"), asked.map(|size| size.0)),
        or_asked(told("LINES"), asked.map(|size| size.1)),
    )
}

/// Returns a name or path as it may be shown: control characters escaped, so that no file name can
/// move a terminal's cursor or pass for another line.
#[must_use]
pub fn printable(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    for c in text.chars() {
        let reorders = matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
        if c.is_control() || reorders {
            shown.extend(c.escape_default());
        } else {
            shown.push(c);
        }
    }
    shown
}

/// Returns a moment in the time zone of this machine.
#[must_use]
pub fn moment(epoch_secs: i64) -> String {
    let Ok(stamp) = jiff::Timestamp::from_second(epoch_secs) else {
        return format!("@{epoch_secs}");
    };
    let zone = jiff::tz::TimeZone::system();
    stamp.to_zoned(zone).strftime("%Y-%m-%d %H:%M:%S").to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_name_can_pass_for_another_line_or_drive_the_terminal() {
        assert_eq!(printable("a\nError: b"), "a\\nError: b");
        assert_eq!(printable("\x1b[2J"), "\\u{1b}[2J");
        assert_eq!(printable("txt\u{202e}exe"), "txt\\u{202e}exe");
        assert_eq!(printable("été 雪"), "été 雪");
    }

    #[test]
    fn numbers_read_well() {
        let shown: Vec<String> = [0, 1023, 1024, 1536, 3_340_000_000, u64::MAX].map(bytes).into();
        assert_eq!(shown, ["0 B", "1023 B", "1.0 KiB", "1.5 KiB", "3.1 GiB", "15.9 EiB"]);
        assert_eq!(count(1_204_000), "1,204,000");
        assert_eq!(counted(1, "file", "files"), "1 file");
    }

    #[test]
    fn plain_output_has_no_escapes() {
        assert_eq!(Output::PLAIN.paint(Tone::Bad, "x"), "x");
    }
}
