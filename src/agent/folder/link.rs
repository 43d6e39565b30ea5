//! The connection to the server: two of them, kept up as long as the folder is open.
//!
//! A session begins with both connections and a subscription from where the engine is, and ends
//! with either connection. Between sessions there is a jittered, growing pause, which a person's
//! command or an edit of the settings cuts short.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::commit::Answers;
use super::view::LinkView;
use super::{
    Context, INCOMING_LEN_MAX, Input, Live, Session, View, commit, fetch, prefetch, upload,
};
use crate::agent::config::{Authority, FolderConfig};
use crate::agent::credentials::Token;
use crate::engine::seam::JournalPage;
use crate::model::{NodeId, Rev};
use crate::protocol::Trust;
use crate::protocol::limits::{INLINE_LEN_MAX, PAGES_IN_FLIGHT_MAX};
use crate::protocol::message::{Coming, FailureCode, Page, PageSeen, Resume, Subscribe};
use crate::protocol::{CallError, CloseReason, ConnectError, Connection, Endpoint, Push};

/// The first pause after a failed try.
const PAUSE_MIN: Duration = Duration::from_millis(200);

/// The longest pause.
const PAUSE_MAX: Duration = Duration::from_secs(60);

/// The pause after a refusal that no waiting will mend.
const PAUSE_REFUSED: Duration = Duration::from_secs(600);

/// A session that lasted this long was a good one: the next pause is the shortest again.
const GOOD_SESSION: Duration = Duration::from_secs(30);

/// How long a server that is there may take to let the device in and take its subscription.
const OPENING_MAX: Duration = Duration::from_secs(60);

/// No further page is taken in while so many bytes of small contents wait to be put in place: what the
/// cache drops would have to be asked for again.
const UNTAKEN_LEN_MAX: usize = INCOMING_LEN_MAX / 2;

/// How often to see whether there is room for a page again.
const PACE: Duration = Duration::from_millis(5);

/// Nothing of what waits was taken for so long: it may never be, and the pages go on.
const PACE_MAX: Duration = Duration::from_millis(200);

/// How often to see whether a server that did not answer in the last session does in this one.
const DOUBT_EVERY: Duration = Duration::from_millis(500);

/// What this program calls itself.
pub(in crate::agent) const PROGRAM: &str = concat!("picloud-agent/", env!("CARGO_PKG_VERSION"));

/// Why there is no session (any more).
enum End {
    /// The server cannot be reached, or the connection broke.
    Offline(String),
    /// It can be reached, lets the device in, and does not answer.
    Unanswered(String),
    /// It can be reached, and something is wrong that a person should see.
    Wrong(String),
    /// The server does not want this device.
    Refused(String),
    /// The journal is to be subscribed to anew.
    Again,
    /// The folder is closed.
    Closed,
}

impl From<ConnectError> for End {
    fn from(error: ConnectError) -> Self {
        let text = with_causes(&error);
        match &error {
            ConnectError::WrongFingerprint { .. } => Self::Wrong(format!(
                "{text}; ask who runs the server: if it was set up anew, get a new join link, run \
                 `picloud logout`, then join the folder again; if not, somebody else answers in its place"
            )),
            // Too busy, say.
            ConnectError::Refused(failure) => Self::of_code(Some(failure.code), text),
            error if error.is_offline() => Self::Offline(text),
            _ => Self::Wrong(text),
        }
    }
}

impl From<CallError> for End {
    fn from(error: CallError) -> Self {
        match &error {
            CallError::Failed(failure) => Self::of_code(Some(failure.code), with_causes(&error)),
            CallError::Closed(reason) => Self::of_close(reason),
            CallError::Message(_) => Self::Wrong(with_causes(&error)),
        }
    }
}

impl End {
    fn of_close(reason: &CloseReason) -> Self {
        match reason {
            CloseReason::Frame(error) if !error.is_outage() => Self::Wrong(format!(
                "The server does not keep to the protocol: {}",
                with_causes(error.as_ref())
            )),
            CloseReason::Unanswered(_) => Self::Unanswered(reason.to_string()),
            _ => Self::of_code(reason.code(), reason.to_string()),
        }
    }

    fn of_code(code: Option<FailureCode>, text: String) -> Self {
        match code {
            // A removed account takes its devices with it, and the server says the same of both.
            Some(FailureCode::Revoked) => {
                Self::Refused(joined_anew("This device was revoked, or its account removed"))
            }
            Some(FailureCode::Unauthenticated) => {
                Self::Refused(joined_anew("The server does not know this device any more"))
            }
            Some(FailureCode::Forbidden | FailureCode::NotFound) => Self::Refused(text),
            Some(FailureCode::Version | FailureCode::Malformed) => Self::Wrong(text),
            _ => Self::Offline(text),
        }
    }
}

/// Says that a device is out, and how it gets in again.
fn joined_anew(what: &str) -> String {
    format!(
        "{what}; ask for an invitation, which gives a new join link, run `picloud logout`, then join \
         the folder again with it"
    )
}

/// Returns an error with what caused it, on one line.
fn with_causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let mut more = error.to_string();
        // The system's number of an error helps nobody.
        if let Some(end) = more.find(" (os error ") {
            more.truncate(end);
        }
        if !text.contains(&more) {
            text.push_str(": ");
            text.push_str(&more);
        }
        cause = error.source();
    }
    text
}

/// Keeps the connection of a folder up.
pub(super) struct Link {
    pub cx: Arc<Context>,
    pub config: FolderConfig,
    pub token: Token,
    pub view: watch::Sender<View>,
    /// The number of the last session.
    pub last_session: u64,
    /// Why the last session ended, when the server answered nothing in it, until it does.
    pub doubt: Option<String>,
}

impl Link {
    /// Runs until the core is gone.
    pub(super) async fn run(mut self) {
        let mut pause = PAUSE_MIN;
        loop {
            let started = Instant::now();
            let end = self.session().await;
            let unanswered = matches!(end, End::Unanswered(_));
            if started.elapsed() >= GOOD_SESSION && !unanswered {
                pause = PAUSE_MIN;
            }
            let mut wait = jittered(pause);
            match end {
                End::Closed => return,
                End::Again => {
                    // Soon, but never in a circle that keeps both sides busy.
                    tokio::time::sleep(PAUSE_MIN).await;
                    continue;
                }
                End::Offline(reason) => {
                    tracing::info!(server = %self.config.server, %reason, "offline");
                    self.show(LinkView::Offline(reason));
                }
                End::Unanswered(reason) => {
                    tracing::warn!(server = %self.config.server, %reason, "given up");
                    self.doubt = Some(reason.clone());
                    self.show(LinkView::Offline(reason));
                }
                End::Wrong(reason) => {
                    tracing::warn!(server = %self.config.server, %reason, "no connection");
                    self.show(LinkView::Wrong(reason));
                }
                End::Refused(reason) => {
                    tracing::error!(server = %self.config.server, %reason, "refused");
                    self.show(LinkView::Refused(reason));
                    wait = PAUSE_REFUSED;
                }
            }
            pause = (pause * 2).min(PAUSE_MAX);
            tokio::select! {
                () = tokio::time::sleep(wait) => {}
                () = self.cx.reconnect.notified() => pause = PAUSE_MIN,
                () = self.cx.inputs.closed() => return,
            }
        }
    }

    fn show(&self, link: LinkView) {
        self.view.send_modify(|view| {
            if !matches!(link, LinkView::Online | LinkView::Doubtful(_)) {
                view.failed_tries += 1;
            }
            view.link = link;
        });
    }

    async fn connect(&self) -> Result<(Connection, mpsc::Receiver<Push>), End> {
        let endpoint = Endpoint {
            address: self.config.server.clone(),
            trust: match self.config.authority {
                Authority::Fingerprint(fingerprint) => Trust::Pinned(fingerprint),
                Authority::Public => Trust::PublicAuthority,
            },
        };
        let (connection, pushes) = Connection::open(&endpoint, PROGRAM).await?;
        let resume = Resume { device: self.config.device, token: self.token.as_bytes().to_vec() };
        let reply = connection.call(&resume).await?;
        let has_drive = reply
            .admitted
            .is_some_and(|admitted| admitted.drives.iter().any(|d| d.id == self.config.drive));
        if has_drive {
            Ok((connection, pushes))
        } else {
            Err(End::Refused(joined_anew(&format!(
                "The account {:?} has no access to this folder's drive any more",
                self.config.user
            ))))
        }
    }

    /// Holds one session, and returns why it ended.
    async fn session(&mut self) -> End {
        let (position, found) = oneshot::channel();
        if self.cx.inputs.send(Input::Position(position)).await.is_err() {
            return End::Closed;
        }
        let Ok((cursor, lineage)) = found.await else {
            return End::Closed;
        };
        let subscribe = Subscribe {
            drive: self.config.drive,
            cursor,
            lineage,
            inline_len_max: INLINE_LEN_MAX,
            takes_over: true,
            coming: true,
        };
        let opening = async {
            let ((journal, pushes), (bulk, _)) = tokio::try_join!(self.connect(), self.connect())?;
            let subscribed = journal.call(&subscribe).await?;
            Ok::<_, End>((journal, pushes, bulk, subscribed))
        };
        // A server that answers pings and nothing else would be waited for for ever.
        let opened = tokio::time::timeout(OPENING_MAX, Box::pin(opening)).await;
        let (journal, mut pushes, bulk, subscribed) = match opened {
            Ok(Ok(opened)) => opened,
            Ok(Err(end)) => return end,
            Err(_) => {
                let secs = OPENING_MAX.as_secs();
                return End::Offline(format!("The server did not answer within {secs} seconds"));
            }
        };
        self.last_session += 1;
        let session = Session { number: self.last_session, journal, bulk };
        let mut tasks = JoinSet::new();
        let (commits, jobs) = mpsc::channel(commit::JOBS_MAX);
        let (sent, mut answers) = Answers::new();
        tasks.spawn(commit::run(Arc::clone(&self.cx), session.clone(), jobs, sent));
        let (uploads, jobs) = mpsc::channel(upload::JOBS_MAX);
        tasks.spawn(upload::run(Arc::clone(&self.cx), session.clone(), jobs));
        let (fetches, jobs) = mpsc::channel(fetch::JOBS_MAX);
        let (notes, heard) = mpsc::channel(prefetch::NOTES_MAX);
        tasks.spawn(fetch::run(Arc::clone(&self.cx), session.clone(), jobs, heard));
        let (seen, mut pages_seen) = mpsc::channel(2 * PAGES_IN_FLIGHT_MAX);
        let online = Input::Online {
            live: Box::new(Live {
                session: session.clone(),
                commits,
                uploads,
                fetches,
                notes,
                seen,
            }),
            lineage: subscribed.lineage,
            from: subscribed.from,
            head: subscribed.head,
            usage: subscribed.usage,
        };
        if self.cx.inputs.send(online).await.is_err() {
            return End::Closed;
        }
        tracing::info!(server = %self.config.server, from = %subscribed.from, head = %subscribed.head, "online");
        self.show(self.doubt.clone().map_or(LinkView::Online, LinkView::Doubtful));
        self.cx.journal.send_replace(Some(session.journal.clone()));
        let known = subscribed.from;
        let end = self.serve(&session, known, &mut pushes, &mut pages_seen, &mut answers).await;
        self.cx.journal.send_replace(None);
        session.journal.close();
        session.bulk.close();
        let offline = Input::Offline { session: session.number };
        if self.cx.inputs.send(offline).await.is_err() {
            return End::Closed;
        }
        end
    }

    async fn serve(
        &mut self,
        session: &Session,
        mut known: Rev,
        pushes: &mut mpsc::Receiver<Push>,
        pages_seen: &mut mpsc::Receiver<Rev>,
        answers: &mut Answers,
    ) -> End {
        // Pages that the core has not taken in yet: as many as the server may send, no more.
        let mut unseen = 0;
        let mut pace = Pace::new();
        let answered = || (session.journal.answered(), session.bulk.answered());
        let at_first = answered();
        let mut looks = tokio::time::interval(DOUBT_EVERY);
        loop {
            // Where nothing is put in place, as in a folder that had the files before, nothing is waited for.
            let has_room = self.cx.applying.load(Ordering::Relaxed) == 0
                || pace.has_room(self.cx.incoming.untaken_len());
            tokio::select! {
                () = tokio::time::sleep(PACE), if !has_room => {}
                push = pushes.recv(), if has_room => match push {
                    Some(Push::Page(page)) => {
                        // What was answered before the page was sent must be heard before it.
                        while let Some(answered) = answers.arrived(session.number).await {
                            if let Err(end) = self.answered(answered).await {
                                return end;
                            }
                        }
                        if page.from != known {
                            return End::Wrong(format!(
                                "The server sent a page that begins after rev {} where one after rev {known} was due",
                                page.from
                            ));
                        }
                        if unseen == PAGES_IN_FLIGHT_MAX {
                            return End::Wrong("The server sent more pages than it may".to_owned());
                        }
                        unseen += 1;
                        known = page.upto;
                        if let Err(end) = self.page(session, page).await {
                            return end;
                        }
                    }
                    Some(Push::Held(now)) if now.drive == self.config.drive => {
                        let input = Input::Held { session: session.number, held: now.held };
                        if self.cx.inputs.send(input).await.is_err() {
                            return End::Closed;
                        }
                    }
                    Some(Push::Coming(note)) if note.drive == self.config.drive => {
                        if self.coming(session, note).is_err() {
                            return End::Closed;
                        }
                    }
                    Some(Push::Usage(now)) if now.drive == self.config.drive => {
                        // As above: what is answered is in it, and would be counted twice.
                        while let Some(answered) = answers.arrived(session.number).await {
                            if let Err(end) = self.answered(answered).await {
                                return end;
                            }
                        }
                        let input = Input::Usage { session: session.number, usage: now.usage };
                        if self.cx.inputs.send(input).await.is_err() {
                            return End::Closed;
                        }
                    }
                    Some(Push::Held(_) | Push::Usage(_) | Push::Coming(_)) => {}
                    Some(Push::Bye(bye)) => return End::of_code(Some(bye.code), bye.message),
                    None => {
                        return End::of_close(&session.journal.closed().await);
                    }
                },
                Some(answered) = answers.next(session.number) => {
                    if let Err(end) = self.answered(answered).await {
                        return end;
                    }
                }
                seen = pages_seen.recv() => {
                    // The core lets go of the session when it wants another subscription.
                    let Some(upto) = seen else { return End::Again };
                    unseen -= 1;
                    let drive = self.config.drive;
                    if let Err(error) = session.journal.notify(&PageSeen { drive, upto }).await {
                        return error.into();
                    }
                }
                _ = looks.tick(), if self.doubt.is_some() => {
                    if answered() != at_first {
                        self.doubt = None;
                        self.show(LinkView::Online);
                    }
                }
                reason = session.bulk.closed() => return End::of_close(&reason),
                () = self.cx.inputs.closed() => return End::Closed,
            }
        }
    }

    /// Hands a note on, unless the core has much to do: it is a hint.
    fn coming(&self, session: &Session, note: Coming) -> Result<(), End> {
        let input = Input::Coming { session: session.number, note };
        match self.cx.inputs.try_send(input) {
            Ok(()) | Err(TrySendError::Full(_)) => Ok(()),
            Err(TrySendError::Closed(_)) => Err(End::Closed),
        }
    }

    async fn answered(&self, answered: Result<Input, CallError>) -> Result<(), End> {
        self.cx.inputs.send(answered?).await.map_err(|_| End::Closed)
    }

    async fn page(&self, session: &Session, page: Page) -> Result<(), End> {
        if page.drive != self.config.drive {
            return Err(End::Wrong("The server sent a page of another drive".to_owned()));
        }
        let packed: usize = page.chunks.iter().map(|chunk| chunk.data.len()).sum();
        self.cx.rates.down.pass(packed as u64).await;
        let made_by = made_by(&page);
        for chunk in page.chunks {
            let len = chunk.data.len();
            self.cx.incoming.put(chunk.id, len, Arc::new(chunk));
        }
        let input = Input::Page {
            session: session.number,
            made_by,
            page: JournalPage {
                upto: page.upto,
                head: page.head,
                consistent: page.consistent,
                nodes: page.nodes,
                digest: page.digest,
            },
        };
        self.cx.inputs.send(input).await.map_err(|_| End::Closed)
    }
}

/// When pages are taken in.
struct Pace {
    /// How much waited when that last changed, and when that was.
    untaken_len: usize,
    since: Instant,
}

impl Pace {
    fn new() -> Self {
        Self { untaken_len: 0, since: Instant::now() }
    }

    fn has_room(&mut self, untaken_len: usize) -> bool {
        if untaken_len != self.untaken_len {
            *self = Self { untaken_len, since: Instant::now() };
        }
        untaken_len <= UNTAKEN_LEN_MAX || self.since.elapsed() >= PACE_MAX
    }
}

/// Returns which device made what, as far as the page tells.
fn made_by(page: &Page) -> Vec<(NodeId, Arc<str>)> {
    let names: Vec<Arc<str>> = page.devices.iter().map(|name| Arc::from(name.as_str())).collect();
    let of = |index: &u32| usize::try_from(*index).ok().and_then(|index| names.get(index));
    let nodes = page.nodes.iter().map(|node| node.id);
    nodes.zip(&page.made_by).filter_map(|(id, index)| Some((id, Arc::clone(of(index)?)))).collect()
}

/// Returns a time between half of `pause` and all of it, so that devices do not come back at once.
fn jittered(pause: Duration) -> Duration {
    let mut byte = [0];
    // Without randomness: no jitter.
    let part = match getrandom::fill(&mut byte) {
        Ok(()) => f64::from(byte[0]) / 255.0,
        Err(_) => 1.0,
    };
    pause.mul_f64(0.5 + 0.5 * part)
}
