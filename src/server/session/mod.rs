//! One connection: letting it in, and answering it until it ends.
//!
//! The session reads requests and never waits for their answers: writes go to the [`lane`] in their
//! order, everything else is answered by a task of its own, the journal is pushed by a [`pump`] per
//! subscription. Requests in flight and their memory are bounded; over the bound the session does
//! not read on, and TCP slows the device down.

mod account;
mod guest;
mod lane;
mod outbox;
mod own;
mod pump;
mod reading;
mod shared;

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::timeout;
use tracing::Instrument;

use super::clock::now_ms;
use super::hub::Seat;
use super::store::StoreError;
use super::store::metadata::{Author, Result};
use super::throttle::address_key;
use crate::model::{DriveId, Rev};
use crate::protocol::connection::ServerConnection;
use crate::protocol::frame::{FrameError, IncomingFrame, kind_name};
use crate::protocol::limits::IN_FLIGHT_MAX;
use crate::protocol::message::{
    Answer, Bye, Commit, Done, Failure, FailureCode, GetChunks, GetList, Join, Login, Message,
    PageSeen, Ping, PutChunks, PutList, Register, Resume, Subscribe, Subscribed,
};
use guest::{Guest, Member, Outcome};
use lane::Write;
use outbox::Outbox;
use pump::{Subscription, Wanted};
pub use shared::Shared;
use shared::Memory;

/// How long a connection may take for each step until it is let in.
const GUEST_PATIENCE: Duration = Duration::from_secs(30);

/// Failed requests after which a guest has to connect anew.
const GUEST_FAILURES_MAX: u32 = 8;

/// Messages that cannot be understood after which the connection ends.
const MALFORMED_MAX: u32 = 16;

/// How long what is under way may take when the connection is over.
const DRAIN_PATIENCE: Duration = Duration::from_secs(5);

/// A reply with contents is as large as this.
const CONTENT_REPLY_LEN: usize = 2 * 1024 * 1024;

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
    frame
        .decode()
        .map_err(|error| StoreError::request(FailureCode::Malformed, error.to_string()))
}

fn is_malformed(error: &StoreError) -> bool {
    matches!(error, StoreError::Request(failure) if failure.code == FailureCode::Malformed)
}

/// Serves a connection whose hello is done, until it ends.
pub async fn serve(
    shared: Arc<Shared>,
    mut connection: ServerConnection,
    peer: SocketAddr,
    mut seat: Seat,
) {
    let (end, mut ended) = watch::channel(None);
    let outbox = Outbox::new(connection.sender(), end);
    let member = tokio::select! {
        admitted = admit(&shared, &mut connection, &outbox, peer, &seat) => admitted,
        bye = next_bye(&mut seat.end) => {
            say_bye(&outbox, bye).await;
            None
        }
    };
    let Some(member) = member else {
        connection.close().await;
        return;
    };
    connection.authenticated();
    let span = tracing::info_span!(
        "session",
        user = member.user.name,
        device = member.device.name,
        %peer
    );
    async {
        tracing::info!("connected");
        let device = member.device.clone();
        let mut session = Session::new(Arc::clone(&shared), outbox.clone(), member);
        let bye = tokio::select! {
            () = session.read(&mut connection) => None,
            bye = next_bye(&mut seat.end) => Some(bye),
            bye = next_bye(&mut ended) => Some(bye),
        };
        if let Some(bye) = bye {
            say_bye(&outbox, bye).await;
        }
        session.finish().await;
        connection.close().await;
        let last_seen = shared.store.write(move |metadata| metadata.set_last_seen(device.num, now_ms()));
        if let Err(error) = last_seen.await {
            log_fault(&error);
        }
        tracing::info!("disconnected");
    }
    .instrument(span)
    .await;
}

async fn next_bye(end: &mut watch::Receiver<Option<Bye>>) -> Bye {
    match end.wait_for(Option::is_some).await.map(|bye| bye.clone()) {
        Ok(Some(bye)) => bye,
        // Nobody is left who could say so.
        _ => std::future::pending().await,
    }
}

async fn say_bye(outbox: &Outbox, bye: Bye) {
    tracing::info!(reason = bye.message, "connection ended by the server");
    // The device may not be reading any more; it will see the connection close.
    timeout(Duration::from_secs(1), outbox.reply(0, &bye)).await.unwrap_or_default();
}

/// Tells once why a connection ended, when there is something to tell.
fn log_end(error: &FrameError) {
    match error {
        FrameError::Io(_) | FrameError::Truncated | FrameError::Silent(_) => {
            tracing::info!(%error, "connection lost");
        }
        _ => tracing::warn!(%error, "connection closed: the other side broke the protocol"),
    }
}

/// Answers a guest until it is let in, or has to go.
async fn admit(
    shared: &Arc<Shared>,
    connection: &mut ServerConnection,
    outbox: &Outbox,
    peer: SocketAddr,
    seat: &Seat,
) -> Option<Member> {
    let mut guest = Guest::new(Arc::clone(shared), address_key(peer.ip()));
    for _ in 0..GUEST_FAILURES_MAX {
        let frame = loop {
            let frame = match timeout(GUEST_PATIENCE, connection.recv()).await {
                Ok(Ok(Some(frame))) => frame,
                Ok(Ok(None)) => return None,
                Ok(Err(error)) => {
                    log_end(&error);
                    outbox.fail(0, &StoreError::request(FailureCode::Malformed, error.to_string())).await;
                    return None;
                }
                Err(_) => {
                    tracing::info!(%peer, "connection closed: nobody was let in for too long");
                    return None;
                }
            };
            if frame.kind != Ping::KIND {
                break frame;
            }
            outbox.reply(frame.request, &Done {}).await;
        };
        let outcome = match frame.kind {
            Join::KIND => match decode::<Join>(&frame) {
                Ok(request) => guest.join(request).await,
                Err(error) => Err(error),
            },
            Login::KIND => match decode::<Login>(&frame) {
                Ok(request) => guest.login(request).await,
                Err(error) => Err(error),
            },
            Register::KIND => match decode::<Register>(&frame) {
                Ok(request) => guest.register(request).await,
                Err(error) => Err(error),
            },
            Answer::KIND => match decode::<Answer>(&frame) {
                Ok(request) => guest.answer(request.answer).await,
                Err(error) => Err(error),
            },
            Resume::KIND => match decode::<Resume>(&frame) {
                Ok(request) => guest.resume(request).await,
                Err(error) => Err(error),
            },
            kind => Err(StoreError::request(
                FailureCode::Unauthenticated,
                format!("{} needs a log-in first", kind_name(kind)),
            )),
        };
        match outcome {
            Ok(Outcome::Asked(reply)) => outbox.reply(frame.request, &reply).await,
            Ok(Outcome::In(member, reply)) => {
                match take_seat(shared, seat, &member).await {
                    Ok(()) => {
                        outbox.reply(frame.request, &reply).await;
                        return Some(*member);
                    }
                    Err(error) => outbox.fail(frame.request, &error).await,
                }
            }
            Err(error) => {
                log_fault(&error);
                tracing::warn!(%peer, request = kind_name(frame.kind), %error, "not let in");
                outbox.fail(frame.request, &error).await;
            }
        }
    }
    tracing::warn!(%peer, "connection closed: too many failures");
    None
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
    in_flight: Arc<Semaphore>,
    memory: Arc<Semaphore>,
    lane: Option<mpsc::Sender<Write>>,
    tasks: JoinSet<()>,
    malformed: u32,
}

impl Session {
    fn new(shared: Arc<Shared>, outbox: Outbox, member: Member) -> Self {
        let (lane, queue) = mpsc::channel(IN_FLIGHT_MAX);
        let author = Author {
            num: member.device.num,
            id: member.device.id,
        };
        let mut tasks = JoinSet::new();
        let work = lane::run(Arc::clone(&shared), outbox.clone(), author, queue);
        tasks.spawn(work.in_current_span());
        Self {
            drives: member.drives.iter().map(|drive| (drive.id, drive.num)).collect(),
            memory: shared.memory_of(member.user.num),
            in_flight: Arc::new(Semaphore::new(IN_FLIGHT_MAX)),
            subscriptions: HashMap::new(),
            lane: Some(lane),
            member: Arc::new(member),
            malformed: 0,
            shared,
            outbox,
            tasks,
        }
    }

    /// Reads and passes on requests until the device ends or breaks the protocol.
    async fn read(&mut self, connection: &mut ServerConnection) {
        loop {
            let frame = match connection.recv().await {
                Ok(Some(frame)) => frame,
                Ok(None) => return,
                Err(error) => {
                    log_end(&error);
                    let failure = StoreError::request(FailureCode::Malformed, error.to_string());
                    self.outbox.fail(0, &failure).await;
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
            Subscribe::KIND => self.subscribe(frame.request, decode(&frame)?).await?,
            Commit::KIND | PutChunks::KIND | PutList::KIND => {
                let permit = self.permit(frame.body.len()).await?;
                let drive = self.drive(lane::decode_drive(&frame)?)?;
                let write = Write {
                    request: frame.request,
                    drive,
                    prepared: lane::prepare(&self.shared, frame),
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
                    GetChunks::KIND | GetList::KIND => CONTENT_REPLY_LEN,
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
        let drive = self
            .shared
            .store
            .read(move |metadata, _| metadata.drive(num))
            .await?
            .ok_or_else(|| StoreError::request(FailureCode::NotFound, "There is no such drive"))?;
        let known = asked.lineage == Some(drive.lineage) && asked.cursor <= drive.head;
        let from = if known { asked.cursor } else { Rev::ZERO };
        // The old one ends before the reply, so that none of its pages follows it.
        drop(self.subscriptions.remove(&num));
        let subscribed = Subscribed {
            lineage: drive.lineage,
            from,
            head: drive.head,
        };
        self.outbox.reply(request, &subscribed).await;
        let wanted = Wanted {
            drive: asked.drive,
            num,
            device: self.member.device.num,
            inline_len_max: asked.inline_len_max,
        };
        let subscription = Subscription::start(
            Arc::clone(&self.shared),
            Arc::clone(&self.memory),
            self.outbox.clone(),
            wanted,
            from,
        );
        self.subscriptions.insert(num, subscription);
        Ok(())
    }

    /// Lets what is under way come to its end, for a while.
    async fn finish(mut self) {
        self.subscriptions.clear();
        drop(self.lane.take());
        let all = async { while self.tasks.join_next().await.is_some() {} };
        if timeout(DRAIN_PATIENCE, all).await.is_err() {
            self.tasks.abort_all();
        }
    }
}
