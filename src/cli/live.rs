//! What changes on a terminal while a command goes on: the status drawn again in its place, and the
//! progress of a sync.

use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

use super::agent::told;
use super::failure::Failure;
use super::output::Output;
use super::spoken;
use super::status::{pending, status_json, summary_line};
use crate::protocol::control::Status;

/// A few lines at the bottom of the terminal that are drawn again at each change.
#[derive(Debug)]
pub(super) struct LiveArea {
    bar: Option<ProgressBar>,
    shown: String,
}

impl LiveArea {
    pub(super) fn new(output: Output) -> Self {
        let bar = output.live().then(|| {
            let bar = ProgressBar::new_spinner();
            bar.set_draw_target(indicatif::ProgressDrawTarget::stdout());
            bar.set_style(message_style());
            bar
        });
        Self { bar, shown: String::new() }
    }

    pub(super) fn show(&mut self, text: &str) {
        if let Some(bar) = &self.bar
            && self.shown != text
        {
            text.clone_into(&mut self.shown);
            bar.set_message(in_rows(text, Output::rows()));
            bar.tick();
        }
    }
}

impl Drop for LiveArea {
    /// Leaves the last state where it stands, and what comes next below it.
    fn drop(&mut self) {
        if let Some(bar) = self.bar.take() {
            bar.abandon();
            println!();
        }
    }
}

/// Returns the first lines of a text, as many as there are rows for with the cursor's below: what has
/// left the top of a terminal cannot be drawn again.
fn in_rows(text: &str, rows: Option<usize>) -> String {
    let rows = rows.map_or(usize::MAX, |rows| rows.max(4) - 1);
    let count = text.lines().count();
    if count <= rows {
        return text.to_owned();
    }
    let mut shown: Vec<&str> = text.lines().take(rows - 1).collect();
    let more = format!("and {} more lines: `picloud status` shows all", count - shown.len());
    shown.push(&more);
    shown.join("\n")
}

fn message_style() -> ProgressStyle {
    ProgressStyle::with_template("{msg}").unwrap_or_else(|_| ProgressStyle::default_spinner())
}

/// How `sync` shows its progress: a bar over bytes on a terminal, else a line now and then.
#[derive(Debug)]
pub(super) struct SyncProgress {
    output: Output,
    plain: bool,
    bar: Option<ProgressBar>,
    /// The most work seen pending at once: what is done is what is missing from it.
    most: u64,
    said: Option<Instant>,
}

impl SyncProgress {
    /// How often a line is written where no bar can be.
    const LINE_EVERY: Duration = Duration::from_secs(10);

    pub(super) fn new(output: Output, plain: bool) -> Self {
        Self { output, plain, bar: None, most: 0, said: None }
    }

    pub(super) fn show(&mut self, status: &Status) -> Result<(), Failure> {
        let left: u64 = status
            .folders
            .iter()
            // A change without content is work too.
            .map(|f| f.upload_bytes + f.download_bytes + 1024 * (f.uploads + f.downloads))
            .sum();
        self.most = self.most.max(left);
        if self.output.json() {
            let mut object = status_json(status);
            object["type"] = "progress".into();
            return told(self.output.object(&object));
        }
        if self.output.live() && !self.plain {
            let bar = self.bar.get_or_insert_with(|| {
                let bar = ProgressBar::new(0);
                bar.set_draw_target(indicatif::ProgressDrawTarget::stdout());
                let style = ProgressStyle::with_template("{bar:30} {percent:>3} %  {msg}");
                if let Ok(style) = style {
                    bar.set_style(style.progress_chars("━╸ "));
                }
                bar
            });
            bar.set_length(self.most.max(1));
            bar.set_position(self.most - left);
            bar.set_message(
                status.folders.iter().filter_map(pending).collect::<Vec<_>>().join("  "),
            );
            return Ok(());
        }
        let now = Instant::now();
        // The first line only after a while: a short sync needs none.
        let said = *self.said.get_or_insert(now);
        if now.duration_since(said) >= Self::LINE_EVERY {
            self.said = Some(now);
            let line = if self.plain { spoken::summary(status) } else { summary_line(status) };
            told(self.output.line(&line))?;
        }
        Ok(())
    }

    pub(super) fn clear(&mut self) {
        if let Some(bar) = self.bar.take() {
            bar.finish_and_clear();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_does_not_fit_is_counted() {
        assert_eq!(in_rows("a\nb\nc", Some(24)), "a\nb\nc");
        let cut = in_rows("a\nb\nc\nd\ne", Some(5));
        assert_eq!(cut, "a\nb\nc\nand 2 more lines: `picloud status` shows all");
    }
}
