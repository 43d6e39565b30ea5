//! What the server counts of its own work, and how that is told to Prometheus (text format 0.0.4).
//!
//! Counters are single atomics, added to where the work is done; what can be asked is asked when somebody
//! looks. No label names a person, a device or a path: whoever may read the numbers may not know who is who.

use std::fmt::Write as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use super::clock::now_ms;
use super::session::Shared;
use super::store::StoreError;
use super::store::metadata::Result;
use crate::model::{ChunkData, Refusal};
use crate::protocol::certificate::Validity;
use crate::protocol::message::{ChangeResult, FailureCode};

/// A number that only grows.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Adds to it.
    pub fn add(&self, more: usize) {
        self.0.fetch_add(more as u64, Ordering::Relaxed);
    }

    fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// How often a measure was at most each of some bounds.
#[derive(Debug)]
pub struct Histogram {
    bounds: &'static [f64],
    buckets: Vec<AtomicU64>,
    count: AtomicU64,
    /// In millionths.
    sum: AtomicU64,
}

impl Histogram {
    /// Makes one with these bounds, which grow.
    #[must_use]
    pub fn new(bounds: &'static [f64]) -> Self {
        let buckets = bounds.iter().map(|_| AtomicU64::new(0)).collect();
        Self { bounds, buckets, count: AtomicU64::new(0), sum: AtomicU64::new(0) }
    }

    /// Takes in one measure.
    pub fn observe(&self, value: f64) {
        if let Some(at) = self.bounds.iter().position(|bound| value <= *bound) {
            self.buckets[at].fetch_add(1, Ordering::Relaxed);
        }
        self.count.fetch_add(1, Ordering::Relaxed);
        let millionths = Duration::try_from_secs_f64(value).unwrap_or_default().as_micros();
        self.sum.fetch_add(u64::try_from(millionths).unwrap_or(u64::MAX), Ordering::Relaxed);
    }
}

/// What the writer counts: see [`super::store`].
#[derive(Debug)]
pub struct WriterMetrics {
    /// How long groups took until they were durable, in seconds.
    pub seconds: Histogram,
    /// How many jobs the groups had.
    pub jobs: Histogram,
    /// Groups that failed as a whole.
    pub failed: Counter,
    /// Records that were stored.
    pub records: Counter,
    /// Their bytes.
    pub record_bytes: Counter,
}

impl Default for WriterMetrics {
    fn default() -> Self {
        Self {
            seconds: Histogram::new(&[
                0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0,
            ]),
            jobs: Histogram::new(&[1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0]),
            failed: Counter::default(),
            records: Counter::default(),
            record_bytes: Counter::default(),
        }
    }
}

/// Who is at the other end of a session, by what its hello says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// An agent.
    Agent,
    /// The command.
    Command,
    /// Something else.
    Other,
}

impl Kind {
    /// Returns the kind of a program that calls itself so.
    #[must_use]
    pub fn of(program: &str) -> Self {
        match program.split('/').next() {
            Some("picloud-agent") => Self::Agent,
            Some("picloud") => Self::Command,
            _ => Self::Other,
        }
    }
}

/// The names of [`Kind`], in its order.
const KINDS: [&str; 3] = ["agent", "command", "other"];

/// The ways in, in the order of [`Way`].
const WAYS: [&str; 4] = ["join", "login", "register", "resume"];

/// How somebody came in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs, reason = "named after the requests")]
pub enum Way {
    Join,
    Login,
    Register,
    Resume,
}

/// Why somebody was not let in.
const DENIALS: [&str; 5] = ["wrong", "throttled", "revoked", "forbidden", "other"];

/// Why a change was refused; in the order of [`refusal_index`].
const REFUSALS: [&str; 9] = [
    "stale",
    "no_parent",
    "name_taken",
    "cycle",
    "not_empty",
    "missing_content",
    "illegal",
    "needs_approval",
    "over_quota",
];

const fn refusal_index(refusal: &Refusal) -> usize {
    match refusal {
        Refusal::Stale { .. } => 0,
        Refusal::NoParent => 1,
        Refusal::NameTaken { .. } => 2,
        Refusal::Cycle => 3,
        Refusal::NotEmpty => 4,
        Refusal::MissingContent { .. } => 5,
        Refusal::Illegal { .. } => 6,
        Refusal::NeedsApproval => 7,
        Refusal::OverQuota => 8,
    }
}

/// What the sessions count.
#[derive(Debug)]
pub struct Metrics {
    started: Instant,
    started_ms: i64,
    /// Connections that were taken.
    pub accepted: Counter,
    /// Connections that were not, because there were too many.
    pub over_limit: Counter,
    /// Connections that ended before their hello.
    pub failed_handshakes: Counter,
    sessions: [Counter; 3],
    sessions_over: [Counter; 3],
    admitted: [Counter; 4],
    denied: [Counter; 5],
    commits: Counter,
    commits_failed: Counter,
    changes_accepted: Counter,
    changes_refused: [Counter; 9],
    revs: Counter,
    /// Chunks that devices sent, those the drive had already too, and deltas.
    chunks_in: Counter,
    chunk_bytes_in: Counter,
    chunks_out: Counter,
    chunk_bytes_out: Counter,
    /// Deltas that were sent in place of chunks.
    pub deltas_out: Counter,
    pages: Counter,
    page_bytes: Counter,
}

impl Default for Metrics {
    fn default() -> Self {
        Self {
            started: Instant::now(),
            started_ms: now_ms(),
            accepted: Counter::default(),
            over_limit: Counter::default(),
            failed_handshakes: Counter::default(),
            sessions: Default::default(),
            sessions_over: Default::default(),
            admitted: Default::default(),
            denied: Default::default(),
            commits: Counter::default(),
            commits_failed: Counter::default(),
            changes_accepted: Counter::default(),
            changes_refused: Default::default(),
            revs: Counter::default(),
            chunks_in: Counter::default(),
            chunk_bytes_in: Counter::default(),
            chunks_out: Counter::default(),
            chunk_bytes_out: Counter::default(),
            deltas_out: Counter::default(),
            pages: Counter::default(),
            page_bytes: Counter::default(),
        }
    }
}

/// A session that goes on until this is dropped.
#[derive(Debug)]
pub struct Counted<'a>(&'a Metrics, Kind);

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        self.0.sessions_over[self.1 as usize].add(1);
    }
}

impl Metrics {
    /// Counts a session that begins.
    #[must_use]
    pub fn session(&self, kind: Kind) -> Counted<'_> {
        self.sessions[kind as usize].add(1);
        Counted(self, kind)
    }

    /// Counts somebody who was let in.
    pub fn admitted(&self, way: Way) {
        self.admitted[way as usize].add(1);
    }

    /// Counts somebody who was not.
    pub fn denied(&self, error: &StoreError) {
        let StoreError::Request(failure) = error else {
            return self.denied[4].add(1);
        };
        self.denied[match failure.code {
            FailureCode::Unauthenticated => 0,
            FailureCode::Throttled => 1,
            FailureCode::Revoked => 2,
            FailureCode::Forbidden => 3,
            _ => 4,
        }]
        .add(1);
    }

    /// Counts what became of a commit.
    pub fn committed(&self, outcome: std::result::Result<(&[ChangeResult], u64), ()>) {
        self.commits.add(1);
        let Ok((results, revs)) = outcome else {
            return self.commits_failed.add(1);
        };
        self.revs.add(usize::try_from(revs).unwrap_or(0));
        for result in results {
            match result {
                ChangeResult::Accepted { .. } => self.changes_accepted.add(1),
                ChangeResult::Refused(refusal) => {
                    self.changes_refused[refusal_index(refusal)].add(1)
                }
            }
        }
    }

    /// Counts chunks that came in, by how many and how long.
    pub fn received(&self, count: usize, len: usize) {
        self.chunks_in.add(count);
        self.chunk_bytes_in.add(len);
    }

    /// Counts chunks that go out.
    pub fn sent(&self, chunks: &[ChunkData]) {
        self.chunks_out.add(chunks.len());
        self.chunk_bytes_out.add(chunks.iter().map(|chunk| chunk.data.len()).sum());
    }

    /// Counts a page that goes out.
    pub fn paged(&self, len: usize) {
        self.pages.add(1);
        self.page_bytes.add(len);
    }
}

/// The text that is put together.
#[derive(Debug, Default)]
struct Text(String);

impl Text {
    fn head(&mut self, name: &str, kind: &str, help: &str) {
        // Writing to a text cannot fail.
        write!(self.0, "# HELP {name} {help}\n# TYPE {name} {kind}\n").unwrap_or_default();
    }

    fn line(&mut self, name: &str, labels: &str, value: impl std::fmt::Display) {
        writeln!(self.0, "{name}{labels} {value}").unwrap_or_default();
    }

    fn counter(&mut self, name: &str, help: &str, value: u64) {
        self.head(name, "counter", help);
        self.line(name, "", value);
    }

    fn gauge(&mut self, name: &str, help: &str, value: impl std::fmt::Display) {
        self.head(name, "gauge", help);
        self.line(name, "", value);
    }

    fn counters(&mut self, name: &str, help: &str, label: &str, names: &[&str], all: &[Counter]) {
        self.head(name, "counter", help);
        for (value, counter) in names.iter().zip(all) {
            self.line(name, &format!("{{{label}=\"{value}\"}}"), counter.get());
        }
    }

    fn histogram(&mut self, name: &str, help: &str, histogram: &Histogram) {
        self.head(name, "histogram", help);
        let mut cumulative = 0;
        let buckets: Vec<u64> =
            histogram.buckets.iter().map(|bucket| bucket.load(Ordering::Relaxed)).collect();
        for (bound, bucket) in histogram.bounds.iter().zip(&buckets) {
            cumulative += bucket;
            self.line(&format!("{name}_bucket"), &format!("{{le=\"{bound}\"}}"), cumulative);
        }
        let count = histogram.count.load(Ordering::Relaxed).max(cumulative);
        self.line(&format!("{name}_bucket"), "{le=\"+Inf\"}", count);
        let sum = Duration::from_micros(histogram.sum.load(Ordering::Relaxed)).as_secs_f64();
        self.line(&format!("{name}_sum"), "", sum);
        self.line(&format!("{name}_count"), "", count);
    }
}

/// Puts together what Prometheus is told.
///
/// # Errors
/// When the database or the disk cannot be asked.
pub async fn render(shared: &Arc<Shared>, validity: Option<Validity>) -> Result<String> {
    let totals = shared.store.read(|metadata, _| metadata.totals()).await?;
    let (disk, packs) = (Arc::clone(shared), shared.store.packs());
    let looked = tokio::task::spawn_blocking(move || {
        let dir = disk.layout.dir();
        let space = crate::checkup::space(dir)
            .map_err(StoreError::file("look at the file system of", dir))?;
        Ok::<_, StoreError>((space, packs.total_len()?))
    });
    let (space, pack_bytes) = looked.await.map_err(|_| StoreError::Closed)??;
    let mut text = Text::default();
    let name = "picloud_build_info";
    text.head(name, "gauge", "Always 1; the label tells the version.");
    text.line(name, concat!("{version=\"", env!("CARGO_PKG_VERSION"), "\"}"), 1);
    shared.metrics.write(&mut text);
    text.gauge("picloud_connections", "Connections open now.", shared.hub.connection_count());
    let devices = shared.hub.devices().len();
    text.gauge("picloud_devices_connected", "Devices connected now.", devices);
    text.gauge("picloud_users", "Accounts.", totals.users);
    text.gauge("picloud_devices", "Devices that are not revoked.", totals.devices);
    text.gauge("picloud_nodes", "Files, directories and links in all drives.", totals.nodes);
    text.gauge(
        "picloud_held_deletions",
        "Mass deletions that wait for a person's approval.",
        totals.held,
    );
    let (writer, queued) = (shared.store.metrics(), shared.store.queued());
    text.gauge("picloud_writer_queue_jobs", "Writes that wait for the database's writer.", queued);
    text.histogram(
        "picloud_writer_commit_seconds",
        "How long groups of writes took until they were durable.",
        &writer.seconds,
    );
    text.histogram(
        "picloud_writer_group_jobs",
        "How many writes were made durable together.",
        &writer.jobs,
    );
    text.counter(
        "picloud_writer_failures_total",
        "Groups of writes that failed as a whole.",
        writer.failed.get(),
    );
    text.counter(
        "picloud_stored_records_total",
        "Chunks and content lists that were written to packs.",
        writer.records.get(),
    );
    text.counter(
        "picloud_stored_bytes_total",
        "Their bytes, as packed.",
        writer.record_bytes.get(),
    );
    text.gauge("picloud_pack_bytes", "Bytes of all packs.", pack_bytes);
    text.gauge("picloud_disk_free_bytes", "Free on the disk of the data directory.", space.free);
    text.gauge("picloud_disk_size_bytes", "Size of that disk.", space.total);
    if let Some(validity) = validity {
        text.gauge(
            "picloud_certificate_expiry_timestamp_seconds",
            "When the certificate ends, in seconds since 1970.",
            validity.until,
        );
    }
    if let Some(bytes) = resident_bytes() {
        text.gauge("process_resident_memory_bytes", "Memory in use.", bytes);
    }
    Ok(text.0)
}

fn resident_bytes() -> Option<u64> {
    let statm = std::fs::read_to_string("/proc/self/statm").ok()?;
    let pages: u64 = statm.split_ascii_whitespace().nth(1)?.parse().ok()?;
    Some(pages.saturating_mul(rustix::param::page_size() as u64))
}

impl Metrics {
    fn write(&self, text: &mut Text) {
        let started = Duration::from_millis(u64::try_from(self.started_ms).unwrap_or(0));
        text.gauge(
            "process_start_time_seconds",
            "When the server was started, in seconds since 1970.",
            started.as_secs_f64(),
        );
        let uptime = self.started.elapsed().as_secs();
        text.gauge("picloud_uptime_seconds", "How long the server runs.", uptime);
        text.counter(
            "picloud_connections_accepted_total",
            "Connections that were taken.",
            self.accepted.get(),
        );
        text.counter(
            "picloud_connections_refused_total",
            "Connections that were refused because there were too many.",
            self.over_limit.get(),
        );
        text.counter(
            "picloud_handshakes_failed_total",
            "Connections that ended before their hello.",
            self.failed_handshakes.get(),
        );
        let kinds = &KINDS[..];
        let help = "Sessions that were let in, by the program at the other end.";
        text.counters("picloud_sessions_total", help, "kind", kinds, &self.sessions);
        let name = "picloud_sessions";
        text.head(name, "gauge", "Sessions open now, by the program at the other end.");
        for (at, kind) in kinds.iter().enumerate() {
            // First those that are over: one that ends meanwhile must not be more than began.
            let over = self.sessions_over[at].get();
            let open = self.sessions[at].get().saturating_sub(over);
            text.line(name, &format!("{{kind=\"{kind}\"}}"), open);
        }
        let help = "Devices let in, by how they came.";
        text.counters("picloud_admissions_total", help, "way", &WAYS, &self.admitted);
        let help =
            "Who was not let in, by why; throttled is who has to wait after too many failures.";
        text.counters("picloud_denials_total", help, "reason", &DENIALS, &self.denied);
        text.counter("picloud_commits_total", "Commits answered.", self.commits.get());
        text.counter(
            "picloud_commits_failed_total",
            "Commits that failed as a whole.",
            self.commits_failed.get(),
        );
        text.counter(
            "picloud_changes_accepted_total",
            "Changes that were accepted, those sent a second time too.",
            self.changes_accepted.get(),
        );
        let help = "Changes that were refused, by why; most are planned again by the device.";
        let name = "picloud_changes_refused_total";
        text.counters(name, help, "reason", &REFUSALS, &self.changes_refused);
        text.counter("picloud_revs_total", "Revs that changes got.", self.revs.get());
        for (name, help, counter) in [
            ("picloud_chunks_received_total", "Chunks that devices sent.", &self.chunks_in),
            ("picloud_chunk_bytes_received_total", "Their bytes, as packed.", &self.chunk_bytes_in),
            ("picloud_chunks_sent_total", "Chunks sent to devices.", &self.chunks_out),
            ("picloud_chunk_bytes_sent_total", "Their bytes, as packed.", &self.chunk_bytes_out),
            ("picloud_deltas_sent_total", "Deltas sent in place of chunks.", &self.deltas_out),
            ("picloud_pages_sent_total", "Pages of journals sent to devices.", &self.pages),
            ("picloud_page_bytes_sent_total", "Their bytes.", &self.page_bytes),
        ] {
            text.counter(name, help, counter.get());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_histogram_counts_what_is_at_most_each_bound() {
        let histogram = Histogram::new(&[0.5, 1.0]);
        for value in [0.1, 0.5, 0.7, 5.0] {
            histogram.observe(value);
        }
        let mut text = Text::default();
        text.histogram("x", "Help.", &histogram);
        assert_eq!(
            text.0,
            "# HELP x Help.\n# TYPE x histogram\nx_bucket{le=\"0.5\"} 2\nx_bucket{le=\"1\"} 3\n\
             x_bucket{le=\"+Inf\"} 4\nx_sum 6.3\nx_count 4\n"
        );
    }
}
