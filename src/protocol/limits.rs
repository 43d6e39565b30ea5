//! Every bound of the protocol, each with its arithmetic.

/// Frame header: u32 body length, u8 kind, u32 request id.
pub const HEADER_LEN: usize = 9;

/// The deepest nesting of lists and maps in a body. No message has more than ten; each level of what
/// is skipped takes stack, of which a thread has two megabytes.
pub const DEPTH_MAX: usize = 64;

/// The longest frame body in bytes before a device is authenticated: a log-in, a join.
pub const BODY_LEN_MAX_GUEST: usize = 64 * 1024;

/// The longest frame body in bytes afterwards: one batch of [`BATCH_LEN_MAX`] bytes, one chunk of
/// 1 MiB over it, and the nodes or changes beside them (512 of at most about 4.7 KiB with the
/// longest names and link targets).
pub const BODY_LEN_MAX: usize = 5 * 1024 * 1024;

/// A sender closes a batch of chunks (in a commit, a page, or a put) once it holds this many bytes.
pub const BATCH_LEN_MAX: usize = 1024 * 1024;

/// The most changes in one commit, and nodes in one page.
pub const BATCH_COUNT_MAX: usize = 512;

/// The most ids in one `FindMissing` or `GetChunks`.
pub const IDS_MAX: usize = 1024;

/// The most bases in one `GetSums`, and chunks in one `PutDeltas` or `GetDeltas`.
pub const BASES_MAX: usize = 16;

/// The most chunks in all the bases of one such request: 64 MiB at the very most, about 20 as a rule.
pub const BASE_CHUNKS_MAX: usize = 64;

/// Files up to this length travel inside the commit and inside the journal page.
pub const INLINE_LEN_MAX: u32 = 64 * 1024;

/// The most requests one connection may have unanswered; the server reads no further until it
/// has answered one.
pub const IN_FLIGHT_MAX: usize = 32;

/// The most pages sent and not yet acknowledged by the device: bounds what a slow device makes the
/// server hold, and what a fast server makes the device hold (8 pages of about 1.5 MiB).
pub const PAGES_IN_FLIGHT_MAX: usize = 8;

/// The longest encoded content list: 64 MiB are 1.8 million chunks, a file of about 450 GiB.
pub const LIST_LEN_MAX: usize = 64 * 1024 * 1024;

/// The longest piece of a content list in one frame.
pub const LIST_PART_LEN_MAX: usize = 1024 * 1024;

/// Seconds for TCP, TLS and hello together, on both sides.
pub const HANDSHAKE_SECS: u64 = 15;

/// Seconds of silence after which the device pings; the server closes after three times this.
pub const KEEPALIVE_SECS: u64 = 20;

/// Seconds a guest may take to become an authenticated device: time for a person to find a phone
/// and type a code.
pub const GUEST_SECS: u64 = 180;

/// Seconds a peer may take to accept 64 KiB before the connection is given up.
pub const STALL_SECS: u64 = 60;

/// Seconds that a request which has reached the server may wait while nothing of any answer comes on
/// its connection. A server's writer has at most 256 jobs before it, of about 1 MiB each at the most:
/// a memory card that takes 4 MB in a second writes that in about a minute.
pub const ANSWER_SECS: u64 = 60;

/// The same for what is one step for the server and may be long: an undo of perhaps a million files, a
/// content list of up to 1.8 million chunks, each of which is looked up.
pub const LONG_ANSWER_SECS: u64 = 600;

/// Bytes of frames that may wait to be written on one connection: a few batches, enough to keep a
/// fast link busy. A longer frame waits for an empty queue.
pub const QUEUE_LEN_MAX: usize = 4 * 1024 * 1024;

/// Pushed messages that wait on a device to be taken: the window of pages and some others.
pub const PUSHES_MAX: usize = PAGES_IN_FLIGHT_MAX + 8;
