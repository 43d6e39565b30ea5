//! One connection: letting it in, and answering it until it ends.
//!
//! The session reads requests and never waits for their answers: writes go to the [`lane`] in their
//! order, everything else is answered by a task of its own, the journal is pushed by a [`pump`] per
//! subscription. Requests in flight and their memory are bounded; over the bound the session does
//! not read on, and TCP slows the device down.

mod account;
mod coming;
mod deltas;
mod drive;
mod guest;
mod held;
mod lane;
mod outbox;
mod own;
mod pump;
mod push;
mod reading;
mod shared;
mod undo;
mod usage;

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::timeout;
use tracing::Instrument;

use super::clock::now_ms;
use super::hub::{Hearing, Seat};
use super::metrics::{Kind, Way};
use super::packs::Packs;
use super::store::StoreError;
use super::store::metadata::{Author, Metadata, Result};
use super::throttle::address_key;
use crate::model::{DriveId, Rev};
use crate::protocol::limits::{GUEST_SECS, IN_FLIGHT_MAX};
use crate::protocol::message::{
    Answer, Coming, Commit, Done, Failure, FailureCode, GetChunks, GetDeltas, GetList, GetSplice,
    GetSums, Join, ListBatches, Login, Message, PageSeen, Ping, PutChunks, PutDeltas, PutList,
    PutSplice, Register, Resume, Subscribe, Subscribed, UndoBatch,
};
use crate::protocol::{FrameError, FrameReader, IncomingFrame, ServerConnection, kind_name};
use coming::Allowance;
use guest::{Guest, Member, Outcome};
use lane::{Write, malformed};
use outbox::Outbox;
use pump::{Subscription, Wanted};
use push::Push;
use shared::Memory;
pub use shared::Shared;
use usage::Listening;
pub use usage::publish_all as publish_usages;

/// Seconds of silence after which a guest has to go.
const GUEST_PATIENCE_SECS: u64 = 30;

/// Failed requests after which a guest has to connect anew.
const GUEST_FAILURES_MAX: u32 = 8;

/// Messages that cannot be understood after which the connection ends.
const MALFORMED_MAX: u32 = 16;

/// How long what is under way may take when the connection is over.
const DRAIN_PATIENCE: Duration = Duration::from_secs(5);

/// A reply with contents is as large as this.
const CONTENT_REPLY_LEN: usize = 2 * 1024 * 1024;

/// What the nodes of a batch take, or the changes looked through for batches.
const BATCHES_MEMORY: usize = 32 * 1024 * 1024;

/// What a request in flight holds.
#[derive(Debug)]
pub struct Permit {
    _in_flight: OwnedSemaphorePermit,
    _memory: Memory,
}

fn log_fault(error: &StoreError) {
    if error.is_fault() {
        let cause = std::error::Error::source(error).map(ToString::to_string);
        tracing::error!(%error, cause, "a request failed");
    }
}

fn decode<M: Message>(frame: &IncomingFrame) -> Result<M> {
    frame.decode().map_err(|error| StoreError::request(FailureCode::Malformed, error.to_string()))
}

fn is_malformed(error: &StoreError) -> bool {
    matches!(error, StoreError::Request(failure) if failure.code == FailureCode::Malformed)
}

/// Serves a connection whose hello is done, until it ends.
pub async fn serve(
    shared: Arc<Shared>,
    connection: ServerConnection,
    peer: SocketAddr,
    seat: Seat,
) {
    let mut end = seat.end.clone();
    let ServerConnection { hello, mut reader, sender } = connection;
    let outbox = Outbox::new(sender);
    let admitted = tokio::select! {
        admitted = admit(&shared, &mut reader, &outbox, peer, &seat) => admitted,
        bye = next_bye(&mut end) => {
            outbox.end(&bye);
            None
        }
    };
    let Some(member) = admitted else {
        return;
    };
    let span = tracing::info_span!(
        "session",
        user = member.user.name,
        device = member.device.name,
        %peer
    );
    let _counted = shared.metrics.session(Kind::of(&hello.program));
    async {
        tracing::info!(program = hello.program, "connected");
        let device = member.device.num;
        let mut session = Session::new(Arc::clone(&shared), outbox.clone(), member);
        tokio::select! {
            () = session.read(&mut reader) => {}
            bye = next_bye(&mut end) => {
                tracing::info!(reason = bye.message, "connection ended by the server");
                outbox.end(&bye);
            }
        }
        session.finish().await;
        let seen = move |metadata: &mut dyn Metadata| metadata.set_last_seen(device, now_ms());
        if let Err(error) = shared.store.write(seen).await {
            log_fault(&error);
        }
        tracing::info!("disconnected");
    }
    .instrument(span)
    .await;
}

async fn next_bye(end: &mut watch::Receiver<Option<Failure>>) -> Failure {
    match end.wait_for(Option::is_some).await.map(|bye| bye.clone()) {
        Ok(Some(bye)) => bye,
        // Nobody is left who could say so.
        _ => std::future::pending().await,
    }
}

/// Tells once why a connection ended, when there is something to tell.
fn log_end(error: &FrameError, peer: Option<SocketAddr>) {
    let peer = peer.map(tracing::field::display);
    match error {
        FrameError::Io(_) | FrameError::Truncated | FrameError::Silent(_) => {
            tracing::info!(peer, %error, "connection lost");
        }
        _ => tracing::warn!(peer, %error, "connection closed: the other side broke the protocol"),
    }
}

/// Answers a guest until it is let in, or has to go.
async fn admit(
    shared: &Arc<Shared>,
    reader: &mut FrameReader,
    outbox: &Outbox,
    peer: SocketAddr,
    seat: &Seat,
) -> Option<Member> {
    let mut guest = Guest::new(Arc::clone(shared), address_key(peer.ip()));
    let mut tries = 0;
    while tries < GUEST_FAILURES_MAX {
        // A person who was asked something gets the protocol's own time to answer.
        let patience = if guest.was_asked() { GUEST_SECS } else { GUEST_PATIENCE_SECS };
        let next = timeout(Duration::from_secs(patience), reader.next()).await;
        let silent = || Err(FrameError::Silent(Duration::from_secs(patience)));
        let frame = match next.unwrap_or_else(|_| silent()) {
            Ok(Some(frame)) => frame,
            Ok(None) => return None,
            Err(error) => {
                log_end(&error, Some(peer));
                outbox.refuse(&error.to_string());
                return None;
            }
        };
        if frame.kind == Ping::KIND {
            outbox.reply(frame.request, &Done {}).await;
            continue;
        }
        tries += 1;
        match ask(&mut guest, &frame).await {
            Ok(Outcome::Asked(reply)) => outbox.reply(frame.request, &reply).await,
            Ok(Outcome::In(member, reply)) => match take_seat(shared, seat, &member).await {
                Ok(()) => {
                    reader.authenticated();
                    // A question is answered on the way of a log-in.
                    shared.metrics.admitted(match frame.kind {
                        Join::KIND => Way::Join,
                        Register::KIND => Way::Register,
                        Resume::KIND => Way::Resume,
                        _ => Way::Login,
                    });
                    outbox.reply(frame.request, &reply).await;
                    return Some(*member);
                }
                Err(error) => {
                    shared.metrics.denied(&error);
                    outbox.fail(frame.request, &error).await;
                }
            },
            Err(error) => {
                log_fault(&error);
                shared.metrics.denied(&error);
                tracing::warn!(%peer, request = kind_name(frame.kind), %error, "not let in");
                outbox.fail(frame.request, &error).await;
            }
        }
    }
    tracing::warn!(%peer, "connection closed: too many failures");
    outbox.end(&Failure {
        code: FailureCode::Throttled,
        message: "Too many tries on one connection".to_owned(),
    });
    None
}

async fn ask(guest: &mut Guest, frame: &IncomingFrame) -> Result<Outcome> {
    match frame.kind {
        Join::KIND => guest.join(decode::<Join>(frame)?).await,
        Login::KIND => guest.login(decode::<Login>(frame)?).await,
        Register::KIND => guest.register(decode::<Register>(frame)?).await,
        Answer::KIND => guest.answer(decode::<Answer>(frame)?.answer).await,
        Resume::KIND => guest.resume(decode::<Resume>(frame)?).await,
        kind => Err(StoreError::request(
            FailureCode::Unauthenticated,
            format!("{} needs a log-in first", kind_name(kind)),
        )),
    }
}

/// Registers for whom the connection speaks, and then looks whether that is still so: a device that
/// is revoked in between is ended either by the hub or here.
async fn take_seat(shared: &Arc<Shared>, seat: &Seat, member: &Member) -> Result<()> {
    let id = member.device.id;
    if !seat.admit(member.user.num, id) {
        return Err(StoreError::request(
            FailureCode::Unavailable,
            "The account has too many connections at once",
        ));
    }
    let revoked = shared.store.read(move |metadata, _| metadata.revoked(&[id])).await?;
    if revoked.is_empty() {
        return Ok(());
    }
    Err(StoreError::request(
        FailureCode::Revoked,
        "This device was removed from the account: join it again to use it",
    ))
}

/// A connection that speaks for a device.
struct Session {
    shared: Arc<Shared>,
    outbox: Outbox,
    member: Arc<Member>,
    drives: HashMap<DriveId, i64>,
    subscriptions: HashMap<i64, Subscription>,
    held_pushes: HashMap<i64, Push>,
    usage_pushes: HashMap<i64, Push>,
    hearings: HashMap<i64, Hearing>,
    notes: Allowance,
    in_flight: Arc<Semaphore>,
    memory: Arc<Semaphore>,
    lane: Option<mpsc::Sender<Write>>,
    tasks: JoinSet<()>,
    malformed: u32,
}

impl Session {
    fn new(shared: Arc<Shared>, outbox: Outbox, member: Member) -> Self {
        let (lane, queue) = mpsc::channel(IN_FLIGHT_MAX);
        let author = Author { num: member.device.num, id: member.device.id };
        let mut tasks = JoinSet::new();
        let work = lane::run(Arc::clone(&shared), outbox.clone(), author, queue);
        tasks.spawn(work.in_current_span());
        Self {
            drives: member.drives.iter().map(|drive| (drive.id, drive.num)).collect(),
            memory: shared.memory_of(member.user.num),
            in_flight: Arc::new(Semaphore::new(IN_FLIGHT_MAX)),
            subscriptions: HashMap::new(),
            held_pushes: HashMap::new(),
            usage_pushes: HashMap::new(),
            hearings: HashMap::new(),
            notes: Allowance::new(),
            lane: Some(lane),
            member: Arc::new(member),
            malformed: 0,
            shared,
            outbox,
            tasks,
        }
    }

    /// Reads and passes on requests until the device ends or breaks the protocol.
    async fn read(&mut self, reader: &mut FrameReader) {
        loop {
            let frame = match reader.next().await {
                Ok(Some(frame)) => frame,
                Ok(None) => return,
                Err(error) => {
                    log_end(&error, None);
                    self.outbox.refuse(&error.to_string());
                    return;
                }
            };
            // Finished tasks are dropped as we go, so that the set stays small.
            while self.tasks.try_join_next().is_some() {}
            let (request, kind) = (frame.request, frame.kind);
            if let Err(error) = self.take(frame).await {
                log_fault(&error);
                if is_malformed(&error) {
                    self.malformed += 1;
                    if self.malformed == 1 {
                        tracing::warn!(request = kind_name(kind), %error, "a message is malformed");
                    }
                }
                self.outbox.fail(request, &error).await;
                if self.malformed >= MALFORMED_MAX {
                    tracing::warn!("connection closed: too many malformed messages");
                    self.outbox.refuse("Too many malformed messages");
                    return;
                }
            }
        }
    }

    async fn permit(&self, bytes: usize) -> Result<Permit> {
        let in_flight = Arc::clone(&self.in_flight).acquire_owned().await;
        Ok(Permit {
            _in_flight: in_flight.map_err(|_| StoreError::Closed)?,
            _memory: self.shared.memory(&self.memory, bytes).await?,
        })
    }

    fn drive(&self, id: DriveId) -> Result<i64> {
        // The same for a drive of somebody else and for none at all.
        self.drives
            .get(&id)
            .copied()
            .ok_or_else(|| StoreError::request(FailureCode::NotFound, "There is no such drive"))
    }

    /// Begins to answer a request.
    async fn take(&mut self, frame: IncomingFrame) -> Result<()> {
        match frame.kind {
            Ping::KIND => self.outbox.reply(frame.request, &Done {}).await,
            PageSeen::KIND => {
                let seen: PageSeen = decode(&frame)?;
                if let Some(subscription) = self.subscriptions.get(&self.drive(seen.drive)?) {
                    subscription.seen(seen.upto);
                }
            }
            Coming::KIND => self.coming(&decode(&frame)?)?,
            Subscribe::KIND => self.subscribe(frame.request, decode(&frame)?).await?,
            Commit::KIND | PutChunks::KIND | PutList::KIND | PutDeltas::KIND | PutSplice::KIND => {
                let bytes = match frame.kind {
                    // What they bring is as long as a batch, however short they are.
                    PutDeltas::KIND | PutSplice::KIND => CONTENT_REPLY_LEN,
                    _ => frame.body.len(),
                };
                let permit = self.permit(bytes).await?;
                let drive = self.drive(lane::decode_drive(&frame)?)?;
                let write = Write {
                    request: frame.request,
                    drive,
                    prepared: lane::prepare(&self.shared, drive, frame),
                    own: self.subscriptions.get(&drive).map(|running| Arc::clone(&running.own)),
                    permit,
                };
                if let Some(lane) = &self.lane {
                    lane.send(write).await.map_err(|_| StoreError::Closed)?;
                }
            }
            Join::KIND | Login::KIND | Register::KIND | Answer::KIND | Resume::KIND => {
                return Err(StoreError::request(
                    FailureCode::Malformed,
                    "This connection has its device already",
                ));
            }
            _ => {
                let bytes = match frame.kind {
                    GetChunks::KIND
                    | GetList::KIND
                    | GetDeltas::KIND
                    | GetSplice::KIND
                    | GetSums::KIND => CONTENT_REPLY_LEN,
                    ListBatches::KIND | UndoBatch::KIND => BATCHES_MEMORY,
                    _ => frame.body.len(),
                };
                let permit = self.permit(bytes).await?;
                let drive = reading::drive_of(&frame)?.map(|id| self.drive(id)).transpose()?;
                let answering = reading::Answering {
                    shared: Arc::clone(&self.shared),
                    outbox: self.outbox.clone(),
                    member: Arc::clone(&self.member),
                    drive,
                };
                let answer = async move {
                    let _permit = permit;
                    let request = frame.request;
                    if let Err(error) = answering.answer(frame).await {
                        log_fault(&error);
                        answering.outbox.fail(request, &error).await;
                    }
                };
                self.tasks.spawn(answer.in_current_span());
            }
        }
        Ok(())
    }

    async fn subscribe(&mut self, request: u32, asked: Subscribe) -> Result<()> {
        let num = self.drive(asked.drive)?;
        let device = self.member.device.num;
        let mut turn = None;
        if asked.takes_over {
            turn = Some(self.shared.hub.take_over(device, num));
            // Once this is done, so is every commit of an earlier connection that was not refused.
            self.shared.store.write(|_| Ok(())).await?;
        }
        let owner = self.member.drives.iter().find(|drive| drive.num == num).map(|it| it.owner);
        let no_drive = || StoreError::request(FailureCode::NotFound, "There is no such drive");
        let listening = Listening::begin(&self.shared.hub, owner.ok_or_else(no_drive)?);
        let default = self.shared.config.accounts.quota();
        let look = move |metadata: &mut dyn Metadata, _: &Packs| {
            let Some(drive) = metadata.drive(num)? else { return Ok(None) };
            let usage = metadata.usage(drive.owner, default)?;
            Ok(Some((drive, usage)))
        };
        let (drive, usage) = self.shared.store.read(look).await?.ok_or_else(no_drive)?;
        let known = asked.lineage == Some(drive.lineage) && asked.cursor <= drive.head;
        let from = if known { asked.cursor } else { Rev::ZERO };
        // The old one ends before the reply, so that none of its pages follows it.
        drop((self.subscriptions.remove(&num), self.held_pushes.remove(&num)));
        drop((self.usage_pushes.remove(&num), self.hearings.remove(&num)));
        let subscribed =
            Subscribed { lineage: drive.lineage, from, head: drive.head, usage: Some(usage) };
        self.outbox.reply(request, &subscribed).await;
        let wanted =
            Wanted { drive: asked.drive, num, device, inline_len_max: asked.inline_len_max, turn };
        let subscription = Subscription::start(
            Arc::clone(&self.shared),
            Arc::clone(&self.memory),
            self.outbox.clone(),
            wanted,
            from,
        );
        self.subscriptions.insert(num, subscription);
        let (shared, outbox) = (Arc::clone(&self.shared), self.outbox.clone());
        self.held_pushes.insert(num, held::start(shared, outbox, asked.drive, num));
        let usage_push = usage::start(self.outbox.clone(), asked.drive, listening, usage);
        self.usage_pushes.insert(num, usage_push);
        if asked.coming {
            let hearing = self.shared.hub.hear(num, device, self.outbox.sender());
            self.hearings.insert(num, hearing);
        }
        Ok(())
    }

    /// Lets what is under way come to its end, for a while.
    async fn finish(mut self) {
        self.subscriptions.clear();
        self.held_pushes.clear();
        self.usage_pushes.clear();
        self.hearings.clear();
        drop(self.lane.take());
        let all = async { while self.tasks.join_next().await.is_some() {} };
        if timeout(DRAIN_PATIENCE, all).await.is_err() {
            self.tasks.abort_all();
        }
    }
}
