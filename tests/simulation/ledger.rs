//! The one clock, the trace, and the independent model of what must survive: each write carries a
//! token of its own, and only a person who replaced or deleted it may have made it go.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

#[derive(Debug, Default)]
pub struct Ledger {
    clock_ns: u64,
    serial: u32,
    tokens: usize,
    pub written: BTreeSet<String>,
    /// Knowingly replaced or deleted by somebody who had seen it.
    pub superseded: BTreeSet<String>,
    /// What the server has acknowledged.
    pub acknowledged: BTreeSet<String>,
    /// What was in a file with more than one name: each name is a file of its own elsewhere.
    pub linked: BTreeSet<String>,
    /// What each was written in place of.
    pub replaced: BTreeMap<String, String>,
    /// Replaced by somebody, and the agent died before it had seen that: what was edited then, nobody
    /// can tell.
    pub unseen: BTreeSet<String>,
    pub trace: String,
}

impl Ledger {
    pub fn ms(&self) -> u64 {
        self.clock_ns / 1_000_000
    }

    pub fn pass_ms(&mut self, ms: u64) {
        self.clock_ns += ms * 1_000_000;
    }

    /// A little time passes with everything that is done.
    pub fn tick_ns(&mut self) -> u64 {
        self.clock_ns += 100_000;
        self.clock_ns
    }

    /// A number that never comes again.
    pub fn serial(&mut self) -> u32 {
        self.serial += 1;
        self.serial
    }

    /// Returns what the next write is to hold; all are of one length, so that sizes tell nothing.
    pub fn token(&mut self) -> String {
        self.tokens += 1;
        format!("t{:05}", self.tokens)
    }

    pub fn wrote(&mut self, token: String, old: Option<String>) {
        if old.as_ref().is_some_and(|old| self.linked.contains(old)) {
            self.linked.insert(token.clone());
        }
        if let Some(old) = &old {
            self.replaced.insert(token.clone(), old.clone());
        }
        self.written.insert(token);
        self.superseded.extend(old);
    }

    /// This was on a disk and not durable when the power went; a person knows that it can be gone,
    /// unless the server has it.
    pub fn lost_by_power(&mut self, text: &str) {
        if !self.acknowledged.contains(text) {
            self.superseded.insert(text.to_owned());
        }
    }

    pub fn note(&mut self, line: impl AsRef<str>) {
        writeln!(self.trace, "{:6} {}", self.ms(), line.as_ref()).unwrap();
    }
}
