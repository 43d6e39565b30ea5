//! Who is connected, and who wants to know of which drive: the fan-out within one process.
//!
//! The mutex is held for a few map operations only, never over an await.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::watch;

use super::throttle::address_key;
use crate::model::{DeviceId, Rev, Usage};
use crate::protocol::message::{Failure, FailureCode};
use crate::protocol::{EncodedFrame, FrameSender};

/// How many connections there may be.
#[derive(Debug, Clone, Copy)]
pub struct ConnectionLimits {
    /// In all.
    pub all: usize,
    /// From one address.
    pub per_address: usize,
    /// Of one user.
    pub per_user: usize,
}

/// The connections and the subscriptions of this process.
#[derive(Debug)]
pub struct Hub {
    limits: ConnectionLimits,
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    connections: HashMap<u64, Connected>,
    next: u64,
    heads: HashMap<i64, watch::Sender<Rev>>,
    held: HashMap<i64, watch::Sender<()>>,
    /// Who wants to know how much of a user's room is in use.
    usages: HashMap<i64, watch::Sender<Option<Usage>>>,
    /// Which subscription of a device (by its number) to a drive took over last.
    turns: HashMap<(i64, i64), u64>,
    /// Who wants to hear of contents on their way to a drive, by drive and number.
    ears: HashMap<i64, HashMap<u64, Ear>>,
    closing: bool,
}

#[derive(Debug)]
struct Connected {
    address: IpAddr,
    owner: Option<(i64, DeviceId)>,
    end: watch::Sender<Option<Failure>>,
}

/// A connection that wants to hear of contents on their way.
#[derive(Debug)]
struct Ear {
    device: i64,
    sender: FrameSender,
}

/// A wish to hear of contents on their way, given up when it is dropped.
#[derive(Debug)]
pub struct Hearing {
    hub: Arc<Hub>,
    drive: i64,
    number: u64,
}

impl Drop for Hearing {
    fn drop(&mut self) {
        let mut inner = self.hub.lock();
        if let Some(ears) = inner.ears.get_mut(&self.drive) {
            ears.remove(&self.number);
            if ears.is_empty() {
                inner.ears.remove(&self.drive);
            }
        }
    }
}

/// A connection's place in the hub, given back when it is dropped.
#[derive(Debug)]
pub struct Seat {
    hub: Arc<Hub>,
    number: u64,
    /// Becomes something when the connection is to end.
    pub end: watch::Receiver<Option<Failure>>,
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.hub.lock().connections.remove(&self.number);
    }
}

fn bye(code: FailureCode, message: &str) -> Failure {
    Failure { code, message: message.to_owned() }
}

impl Hub {
    /// Makes a hub without connections.
    #[must_use]
    pub fn new(limits: ConnectionLimits) -> Arc<Self> {
        Arc::new(Self { limits, inner: Mutex::default() })
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a connection in, unless there are too many.
    pub fn enter(self: &Arc<Self>, address: IpAddr) -> Option<Seat> {
        let address = address_key(address);
        let mut inner = self.lock();
        let from_there = inner.connections.values().filter(|other| other.address == address);
        if inner.closing
            || inner.connections.len() >= self.limits.all
            || from_there.count() >= self.limits.per_address
        {
            return None;
        }
        let number = inner.next;
        inner.next += 1;
        let (end, receiver) = watch::channel(None);
        let connected = Connected { address, owner: None, end };
        inner.connections.insert(number, connected);
        Some(Seat { hub: Arc::clone(self), number, end: receiver })
    }

    /// A subscription of a device to a drive takes over from earlier ones; returns its turn.
    pub fn take_over(&self, device: i64, drive: i64) -> u64 {
        let mut inner = self.lock();
        let turn = inner.turns.entry((device, drive)).or_default();
        *turn += 1;
        *turn
    }

    /// Returns whether no later subscription has taken over.
    pub fn has_turn(&self, device: i64, drive: i64, turn: u64) -> bool {
        self.lock().turns.get(&(device, drive)) == Some(&turn)
    }

    /// Ends the connections of a device.
    pub fn end_device(&self, device: DeviceId) {
        let message = "This device was removed from the account: join it again to use it";
        self.end_where(&bye(FailureCode::Revoked, message), |connected| {
            connected.owner.is_some_and(|(_, owner)| owner == device)
        });
    }

    /// Lets nobody in any more, and ends all connections.
    pub fn close(&self) {
        self.lock().closing = true;
        self.end_where(&bye(FailureCode::Unavailable, "The server is shutting down"), |_| true);
    }

    fn end_where(&self, bye: &Failure, which: impl Fn(&Connected) -> bool) {
        for connected in self.lock().connections.values().filter(|connected| which(connected)) {
            connected.end.send_replace(Some(bye.clone()));
        }
    }

    /// Returns the devices that are connected.
    #[must_use]
    pub fn devices(&self) -> Vec<DeviceId> {
        let inner = self.lock();
        let owners = inner.connections.values().filter_map(|connected| connected.owner);
        let mut devices: Vec<DeviceId> = owners.map(|(_, device)| device).collect();
        devices.sort_unstable();
        devices.dedup();
        devices
    }

    /// Returns how many connections there are.
    #[must_use]
    pub fn connection_count(&self) -> usize {
        self.lock().connections.len()
    }

    /// Tells who listens that a drive has a new head.
    pub fn publish(&self, drive: i64, head: Rev) {
        let mut inner = self.lock();
        if let Some(sender) = inner.heads.get(&drive) {
            if sender.receiver_count() == 0 {
                inner.heads.remove(&drive);
            } else {
                sender.send_if_modified(|known| {
                    let newer = head > *known;
                    *known = head.max(*known);
                    newer
                });
            }
        }
    }

    /// Tells who listens that what is held in a drive has changed.
    pub fn publish_held(&self, drive: i64) {
        let mut inner = self.lock();
        if let Some(sender) = inner.held.get(&drive)
            && sender.send(()).is_err()
        {
            inner.held.remove(&drive);
        }
    }

    /// Tells everybody who listens that what is held may have changed.
    pub fn publish_all_held(&self) {
        self.lock().held.retain(|_, sender| sender.send(()).is_ok());
    }

    /// Listens to what is held in a drive: a wake-up, what is held is in the database.
    #[must_use]
    pub fn listen_held(&self, drive: i64) -> watch::Receiver<()> {
        self.lock().held.entry(drive).or_insert_with(|| watch::channel(()).0).subscribe()
    }

    /// Tells who listens how much of a user's room is in use. Called where changes are made, in their
    /// order: so the newest value is the one that counts.
    pub fn publish_usage(&self, user: i64, usage: Usage) {
        let mut inner = self.lock();
        if let Some(sender) = inner.usages.get(&user)
            && sender.send(Some(usage)).is_err()
        {
            inner.usages.remove(&user);
        }
    }

    /// Listens to how much of a user's room is in use; nothing before that changes.
    #[must_use]
    pub fn listen_usage(&self, user: i64) -> watch::Receiver<Option<Usage>> {
        let mut receiver =
            self.lock().usages.entry(user).or_insert_with(|| watch::channel(None).0).subscribe();
        receiver.mark_unchanged();
        receiver
    }

    /// Returns the users to whose room somebody listens.
    #[must_use]
    pub fn usage_users(&self) -> Vec<i64> {
        let mut inner = self.lock();
        inner.usages.retain(|_, sender| sender.receiver_count() > 0);
        inner.usages.keys().copied().collect()
    }

    /// From now on `sender` gets what others pass on to a drive, until what is returned is dropped.
    #[must_use]
    pub fn hear(self: &Arc<Self>, drive: i64, device: i64, sender: FrameSender) -> Hearing {
        let mut inner = self.lock();
        let number = inner.next;
        inner.next += 1;
        inner.ears.entry(drive).or_default().insert(number, Ear { device, sender });
        Hearing { hub: Arc::clone(self), drive, number }
    }

    /// Sends a frame to those who want to hear of contents on their way to a drive, but not to the
    /// device it is from, nor where there is no room for it now.
    pub fn pass_on(&self, drive: i64, from: i64, frame: &EncodedFrame) {
        let inner = self.lock();
        for ear in inner.ears.get(&drive).into_iter().flat_map(HashMap::values) {
            if ear.device != from && !ear.sender.try_push_encoded(frame.clone()) {
                tracing::debug!("a note of a content on its way is dropped");
            }
        }
    }

    /// Listens to a drive. The value is only a wake-up: the head is in the database.
    #[must_use]
    pub fn listen(&self, drive: i64) -> watch::Receiver<Rev> {
        self.lock().heads.entry(drive).or_insert_with(|| watch::channel(Rev::ZERO).0).subscribe()
    }
}

impl Seat {
    /// Notes for whom the connection speaks; false when the user has too many.
    #[must_use]
    pub fn admit(&self, user: i64, device: DeviceId) -> bool {
        let mut inner = self.hub.lock();
        let others = inner
            .connections
            .iter()
            .filter(|(number, _)| **number != self.number)
            .filter(|(_, connected)| connected.owner.is_some_and(|(owner, _)| owner == user));
        if others.count() >= self.hub.limits.per_user {
            return false;
        }
        if let Some(connected) = inner.connections.get_mut(&self.number) {
            connected.owner = Some((user, device));
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: ConnectionLimits = ConnectionLimits { all: 4, per_address: 2, per_user: 1 };

    #[test]
    fn seats_are_bounded_and_given_back() {
        let hub = Hub::new(LIMITS);
        let here: IpAddr = [10, 0, 0, 1].into();
        let there: IpAddr = [10, 0, 0, 2].into();
        let (one, two) = (hub.enter(here).unwrap(), hub.enter(here).unwrap());
        assert!(hub.enter(here).is_none(), "one address");
        let three = hub.enter(there).unwrap();
        let device = DeviceId::from_bytes([1; 16]);
        assert!(one.admit(7, device) && one.admit(7, device));
        assert!(!three.admit(7, device), "one user");
        drop(one);
        assert!(three.admit(7, device));
        hub.end_device(device);
        assert!(three.end.borrow().is_some() && two.end.borrow().is_none());
        hub.close();
        assert!(two.end.borrow().is_some() && hub.enter(there).is_none());
    }

    #[test]
    fn a_head_is_told_to_who_listens_and_never_goes_back() {
        let hub = Hub::new(LIMITS);
        let mut listener = hub.listen(1);
        listener.mark_unchanged();
        hub.publish(1, Rev(5));
        assert!(listener.has_changed().unwrap());
        assert_eq!(*listener.borrow_and_update(), Rev(5));
        hub.publish(1, Rev(4));
        hub.publish(2, Rev(9));
        assert!(!listener.has_changed().unwrap());
    }
}
