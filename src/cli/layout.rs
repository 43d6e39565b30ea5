//! Text in a width: wrapped at words, paths shortened where they are longest, and times and rates in
//! words.

use unicode_width::{UnicodeWidthChar as _, UnicodeWidthStr as _};

use super::output::{Output, Tone};

/// Narrower than this nothing can be read; it is then as if it were that wide.
const WIDTH_MIN: usize = 20;

/// Returns how many columns a text takes.
#[must_use]
pub fn width_of(text: &str) -> usize {
    text.width()
}

/// Lines of at most a width, each painted by itself.
#[derive(Debug)]
pub struct Lines {
    output: Output,
    width: usize,
    lines: Vec<String>,
}

impl Lines {
    /// Returns none yet. Without a width nothing is wrapped.
    #[must_use]
    pub fn new(output: Output, width: Option<usize>) -> Self {
        Self {
            output,
            width: width.map_or(usize::MAX, |width| width.max(WIDTH_MIN)),
            lines: vec![],
        }
    }

    /// Returns the width.
    #[must_use]
    pub const fn width(&self) -> usize {
        self.width
    }

    /// Adds a text, indented, in a tone; further lines of it are indented by two more.
    pub fn add(&mut self, indent: usize, tone: Option<Tone>, text: &str) {
        let output = self.output;
        let paint = |line: &str| match tone {
            Some(tone) if !line.is_empty() => output.paint(tone, line),
            _ => line.to_owned(),
        };
        for (index, line) in wrap(text, self.width, indent).into_iter().enumerate() {
            let indent = if index == 0 { indent } else { indent + 2 };
            self.lines.push(format!("{}{}", " ".repeat(indent), paint(&line)));
        }
    }

    /// Adds two texts on one line, the second one faint; on two where one is too narrow.
    pub fn add_pair(&mut self, first: &str, second: &str) {
        if width_of(first) + 2 + width_of(second) <= self.width {
            let second = self.output.paint(Tone::Faint, second);
            self.lines.push(format!("{first}  {second}"));
        } else {
            self.lines.push(shortened(first, self.width));
            self.add(2, Some(Tone::Faint), second);
        }
    }

    /// Adds a line as it is.
    pub fn push(&mut self, line: String) {
        self.lines.push(line);
    }

    /// Returns them.
    #[must_use]
    pub fn into_text(self) -> String {
        self.lines.join("\n")
    }
}

/// Cuts a text into lines at its spaces; a word that is too long is cut anywhere.
fn wrap(text: &str, width: usize, indent: usize) -> Vec<String> {
    let room = |index: usize| {
        let indent = if index == 0 { indent } else { indent + 2 };
        width.saturating_sub(indent).max(WIDTH_MIN / 2)
    };
    let mut lines = vec![String::new()];
    let mut taken = 0;
    for word in text.split(' ') {
        let len = width_of(word);
        let space = usize::from(taken > 0);
        if taken > 0 && taken + space + len > room(lines.len() - 1) {
            lines.push(String::new());
            taken = 0;
        } else if taken > 0
            && let Some(line) = lines.last_mut()
        {
            line.push(' ');
            taken += 1;
        }
        for c in word.chars() {
            let len = c.width().unwrap_or(0);
            if taken + len > room(lines.len() - 1) {
                lines.push(String::new());
                taken = 0;
            }
            if let Some(line) = lines.last_mut() {
                line.push(c);
                taken += len;
            }
        }
    }
    lines
}

/// Returns a path in a width: its end is what tells it from others.
#[must_use]
pub fn shortened(path: &str, width: usize) -> String {
    if width_of(path) <= width {
        return path.to_owned();
    }
    let mut taken = 1;
    let mut from = path.len();
    for (index, c) in path.char_indices().rev() {
        taken += c.width().unwrap_or(0);
        if taken > width {
            break;
        }
        from = index;
    }
    format!("…{}", &path[from..])
}

/// Returns a bar of so many columns.
#[must_use]
pub fn bar(done: u64, of: u64, width: usize) -> String {
    let full = match of {
        0 => 0,
        of => usize::try_from(u128::from(done) * width as u128 / u128::from(of)).unwrap_or(width),
    };
    let full = full.min(width);
    format!("{}{}", "█".repeat(full), "░".repeat(width - full))
}

/// Returns a part in percent, 100 only when all of it is over.
#[must_use]
pub fn percent(done: u64, of: u64) -> u64 {
    match of {
        0 => 0,
        of => u64::try_from(u128::from(done) * 100 / u128::from(of)).unwrap_or(100).min(100),
    }
}

/// Returns a span of time in words: `9 minutes`.
#[must_use]
pub fn span(secs: u64) -> String {
    let (number, one) = match secs {
        0..60 => (secs, "second"),
        60..3600 => (secs.div_ceil(60), "minute"),
        3600..172_800 => (secs.div_ceil(3600), "hour"),
        _ => (secs.div_ceil(86_400), "day"),
    };
    format!("{number} {one}{}", if number == 1 { "" } else { "s" })
}

/// Returns how long ago something was, in words.
#[must_use]
pub fn ago(now: i64, then: i64) -> String {
    match now.saturating_sub(then) {
        // The server's clock may be a little ahead.
        secs if secs < 60 => "just now".to_owned(),
        secs => format!("{} ago", span(rounded_down(secs.unsigned_abs()))),
    }
}

/// What was 119 minutes ago was an hour ago.
fn rounded_down(secs: u64) -> u64 {
    match secs {
        0..3600 => secs - secs % 60,
        3600..172_800 => secs - secs % 3600,
        _ => secs - secs % 86_400,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_fits_its_width_whatever_it_is() {
        assert_eq!(wrap("a b c", 80, 0), ["a b c"]);
        assert_eq!(wrap("one two three four five", 20, 2), ["one two three four", "five"]);
        assert_eq!(wrap(&"x".repeat(25), 20, 0), ["x".repeat(20), "x".repeat(5)]);
        // Wide characters take two columns.
        assert_eq!(wrap("雪雪雪雪雪雪雪雪雪雪雪", 20, 0), ["雪雪雪雪雪雪雪雪雪雪", "雪"]);
        assert_eq!(shortened("Photos/2026/IMG_1.jpg", 12), "…6/IMG_1.jpg");
        assert_eq!(shortened("雪雪雪雪", 5), "…雪雪");
        assert_eq!(bar(1, 3, 9), "███░░░░░░");
        assert_eq!((percent(999, 1000), percent(5, 0)), (99, 0));
    }

    #[test]
    fn times_are_said_in_words() {
        let spans: Vec<String> = [1, 59, 60, 61, 3600, 90_000, 172_801].map(span).into();
        let expected =
            ["1 second", "59 seconds", "1 minute", "2 minutes", "1 hour", "25 hours", "3 days"];
        assert_eq!(spans, expected);
        assert_eq!(ago(1000, 1030), "just now");
        assert_eq!(ago(10_000, 10_000 - 7199), "1 hour ago");
    }
}
