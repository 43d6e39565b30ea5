//! From pages of the journal and answers to commits to the remote tree.

use super::defect::Defect;
use super::seam::{Committed, JournalPage};
use super::trees::{Aspects, Entry, LocalBody, Remote, Sent, Trees};
use super::{Batch, Engine, Flight, Pushed, Subject};
use crate::model::{Body, Digest, Lineage, Node, NodeId, Refusal, Rev, Versioned};

/// The journal is heard anew because of a digest at most this often.
const RESUBSCRIBE_MS: u64 = 60_000;

/// Returns what both sides agree on once the server has made `after` of what it had, of which `told` was told.
/// What is left out never takes in what changed there before it tells what changed here, and a folder that
/// only sends never does: in what was not told, nothing new is agreed on.
fn agreed(before: &Entry, after: Node, told: Aspects) -> Node {
    match &before.synced {
        Some(base) => Node {
            place: if told.place { after.place } else { base.place.clone() },
            body: if told.body { after.body } else { base.body.clone() },
            attrs: if told.attrs { after.attrs } else { base.attrs },
        },
        None => after,
    }
}

impl<T: Trees> Engine<T> {
    /// A connection is there.
    pub(super) fn online(
        &mut self,
        lineage: Lineage,
        from: Rev,
        head: Rev,
    ) -> Result<(), T::Error> {
        self.offline();
        let mut meta = self.trees.meta();
        let is_new_lineage = meta.lineage.is_some_and(|known| known != lineage);
        if is_new_lineage || from < meta.cursor {
            // The journal is told from the beginning, by a server that began anew or went back to
            // an older backup. Nothing that both sides once agreed on counts any more.
            self.begin_union()?;
            meta = self.trees.meta();
            meta.consistent = head == Rev::ZERO;
        } else {
            // Nothing is asked before everything is heard that was there at this moment: answers to
            // what an earlier connection sent are part of it. And nothing of it is believed before
            // the digests agree: a server that went back to an older backup and has grown past our
            // cursor since tells a journal in which what we know never was.
            meta.consistent = from == Rev::ZERO && head == Rev::ZERO;
        }
        meta.lineage = Some(lineage);
        self.trees.set_meta(meta)?;
        self.link.online = true;
        self.link.head = head;
        self.link.head_at_first = head;
        // Told from the beginning, the journal contradicts nothing.
        self.link.is_proved = from == Rev::ZERO;
        self.link.is_contradicted = false;
        if head < self.link.newest_own {
            self.contradicted()?;
        }
        self.forget_word();
        self.begin_telling();
        self.agenda.forget_revs();
        self.agenda.sweep();
        Ok(())
    }

    /// The connection is gone: what was asked on it is in doubt, and is planned again.
    pub(super) fn offline(&mut self) {
        self.link.online = false;
        let mut batches: Vec<u64> = std::mem::take(&mut self.batches).into_keys().collect();
        batches.sort_unstable();
        self.commits_in_doubt.extend(batches);
        self.outbox.clear();
        self.outbox_bytes = 0;
        let cut: Vec<NodeId> = self
            .flights
            .iter()
            .filter(|(_, flight)| matches!(flight, Flight::Commit { .. } | Flight::Upload { .. }))
            .map(|(id, _)| *id)
            .collect();
        for id in cut {
            if let Some(Flight::Commit { pushed }) = self.land(id)
                && !self.unsure.contains_key(&id)
            {
                let Pushed { node: after, base, told, .. } = pushed;
                let sent = Sent { node: id, after, base: Some(base), told };
                self.in_doubt.insert(id, sent);
            }
        }
        self.uploaded.clear();
        self.quota.forget_usage();
    }

    /// The journal tells of a node whose change is in doubt.
    fn end_doubt_of(&mut self, doubt: Sent, entry: &mut Entry, node: &Option<Node>) {
        let base_was = entry.synced.take();
        if doubt.after == *node || (doubt.after.is_some() && doubt.base == Some(Rev::ZERO)) {
            // It is the change whose answer was lost, and what both sides agreed on; so is a creation
            // whatever became of it since: nobody else can have made a node of this id.
            entry.synced = base_was;
            entry.synced = doubt.after.map(|after| agreed(entry, after, doubt.told));
        } else if doubt.after.is_some() && doubt.base.is_some() && node.is_some() {
            // It is another. Whether ours came before it, only the server knows; until it says so
            // nothing is agreed on.
            self.unsure.insert(doubt.node, (doubt, base_was));
        }
    }

    /// Nothing is in doubt any more.
    fn end_doubt(&mut self) -> Result<(), T::Error> {
        self.in_doubt.clear();
        for commit in std::mem::take(&mut self.commits_in_doubt) {
            self.trees.forget_sent(commit)?;
        }
        Ok(())
    }

    /// Forgets the remote tree and every merge base: what follows is a union, which adds and
    /// conflicts, and never deletes.
    fn begin_union(&mut self) -> Result<(), T::Error> {
        let mut meta = self.trees.meta();
        meta.digest = Digest::default();
        meta.cursor = Rev::ZERO;
        meta.consistent = false;
        meta.linked = false;
        self.trees.set_meta(meta)?;
        self.end_doubt()?;
        self.forget_puttings()?;
        self.forget_scoped();
        self.unsure.clear();
        self.link.newest_own = Rev::ZERO;
        let mut after = None;
        loop {
            let ids = self.trees.all(after, 512)?;
            let Some(last) = ids.last() else {
                return Ok(());
            };
            after = Some(*last);
            for id in ids {
                let mut entry = self.trees.get(id)?;
                entry.remote = None;
                entry.synced = None;
                entry.left_out = false;
                self.trees.put(id, &entry)?;
            }
        }
    }

    /// Takes a page in.
    pub(super) fn page(&mut self, page: JournalPage) -> Result<(), T::Error> {
        for Versioned { id, rev, node } in page.nodes {
            let mut entry = self.trees.get(id)?;
            if entry.remote.as_ref().is_some_and(|known| known.rev >= rev) {
                continue;
            }
            if let Some(doubt) = self.in_doubt.remove(&id) {
                self.end_doubt_of(doubt, &mut entry, &node);
            }
            let mut meta = self.trees.meta();
            if let Some(old) = &entry.remote {
                meta.digest.remove(id, old.rev, &old.node);
            }
            if let Some(node) = &node {
                meta.digest.add(id, rev, node);
                self.copies.heard(id, node);
            }
            self.trees.set_meta(meta)?;
            entry.remote = node.map(|node| Remote { rev, node });
            self.agenda.clear_retry(id);
            self.put(id, &entry)?;
            if entry.remote.is_none()
                && entry.synced.is_none()
                && entry.local.is_some()
                && !self.puttings.contains(id)
            {
                // The id is used up: what is here is a new node.
                let fresh = self.fresh_id();
                self.give_local(id, fresh)?;
            }
        }
        let mut meta = self.trees.meta();
        meta.cursor = meta.cursor.max(page.upto);
        self.trees.set_meta(meta)?;
        self.link.head = self.link.head.max(page.head);
        if !self.compare_digests(&page.digest, page.upto)? {
            return Ok(());
        }
        let mut meta = self.trees.meta();
        let was_consistent = meta.consistent;
        meta.consistent = page.consistent && self.link.is_proved;
        self.trees.set_meta(meta)?;
        if meta.consistent && !was_consistent {
            self.agenda.sweep();
        }
        if page.upto == page.head && page.consistent {
            // The server takes nothing more from earlier connections: what is not here by now never
            // arrived.
            self.end_doubt()?;
        }
        self.agenda.reached(meta.cursor);
        Ok(())
    }

    /// Compares the digests, if both are at hand; returns whether they do not differ.
    fn compare_digests(&mut self, theirs: &Option<Digest>, upto: Rev) -> Result<bool, T::Error> {
        // Answers to our commits run ahead of the pages: compare only when the pages have caught up.
        let Some(theirs) = theirs else { return Ok(true) };
        if self.link.newest_own > upto {
            return Ok(true);
        }
        let agrees = self.trees.meta().digest == *theirs;
        self.link.agrees = Some(agrees);
        if agrees {
            self.link.is_proved = true;
            self.link.is_contradicted = false;
            self.solve(&Subject::Listing(NodeId::ROOT));
        } else {
            self.contradicted()?;
        }
        Ok(agrees)
    }

    /// The server went back to an older backup and has grown past our cursor since, or our state is
    /// damaged. Either way what we remember of the server is wrong: hear all of it again.
    fn contradicted(&mut self) -> Result<(), T::Error> {
        let reason = "The server's journal is not the one this device knows (was it restored from a \
                      backup?): everything is compared again, and nothing is deleted";
        self.problem(Subject::Listing(NodeId::ROOT), reason);
        // Until then nothing is planned.
        let mut meta = self.trees.meta();
        meta.consistent = false;
        self.trees.set_meta(meta)?;
        self.link.is_proved = false;
        self.link.is_contradicted = true;
        self.hear_anew()
    }

    /// Has the journal told from the beginning, once it was contradicted and not too soon after the
    /// last time.
    pub(super) fn hear_anew(&mut self) -> Result<(), T::Error> {
        if self.link.is_contradicted && self.now.ms >= self.link.resubscribe_after_ms {
            self.link.resubscribe_after_ms = self.now.ms + RESUBSCRIBE_MS;
            self.link.is_contradicted = false;
            self.link.needs_resubscribe = true;
            self.begin_union()?;
        }
        Ok(())
    }

    /// Returns when [`Engine::hear_anew`] will do something.
    pub(super) fn hear_anew_at_ms(&self) -> Option<u64> {
        self.link.is_contradicted.then_some(self.link.resubscribe_after_ms)
    }

    /// Takes the answers to a commit in.
    pub(super) fn committed(
        &mut self,
        batch: u64,
        results: Vec<Committed>,
        head: Rev,
    ) -> Result<(), T::Error> {
        let Some(Batch { ids, .. }) = self.batches.remove(&batch) else {
            return Ok(());
        };
        self.trees.forget_sent(batch)?;
        self.link.head = self.link.head.max(head);
        for (id, result) in ids.into_iter().zip(results) {
            let Some(Flight::Commit { pushed }) = self.land(id) else {
                continue;
            };
            if let Some((_, base_was)) = self.unsure.remove(&id) {
                // It never arrived, or the answer says what is agreed on now.
                let mut entry = self.trees.get(id)?;
                if entry.synced.is_none() {
                    entry.synced = base_was;
                    self.put(id, &entry)?;
                }
            }
            match result {
                Committed::Accepted { rev } => self.accepted(id, rev, pushed)?,
                Committed::Refused(refusal) => self.refused(id, &pushed, refusal, head)?,
                Committed::Changed => self.look_again(id)?,
                Committed::Unreadable { reason } => {
                    self.problem(Subject::Node(id), reason);
                    self.agenda.retry_slowly(id, self.now.ms);
                }
            }
        }
        Ok(())
    }

    fn accepted(&mut self, id: NodeId, rev: Rev, pushed: Pushed) -> Result<(), T::Error> {
        self.link.newest_own = self.link.newest_own.max(rev);
        self.uploaded.remove(&id);
        let mut entry = self.trees.get(id)?;
        let told = match self.trees.has_defect(Defect::UntoldIsAgreedOn) {
            true => Aspects::ALL,
            false => pushed.told,
        };
        let base = pushed.node.clone().map(|node| agreed(&entry, node, told));
        // Up to the cursor the journal has told all; an answer about something older was to a change
        // sent twice.
        if rev > self.trees.meta().cursor
            && entry.remote.as_ref().is_none_or(|known| known.rev < rev)
        {
            let mut meta = self.trees.meta();
            if let Some(old) = &entry.remote {
                meta.digest.remove(id, old.rev, &old.node);
            }
            if let Some(node) = &pushed.node {
                meta.digest.add(id, rev, node);
            }
            self.trees.set_meta(meta)?;
            entry.remote = pushed.node.clone().map(|node| Remote { rev, node });
        }
        let parent = pushed.node.as_ref().or(entry.synced.as_ref()).map(|node| node.place.parent);
        entry.synced = base;
        if self.trees.has_defect(Defect::AnswerCoversLaterEdit)
            && let (Some(local), Some(Node { body: Body::File { content, .. }, .. })) =
                (&mut entry.local, &entry.synced)
            && local.body == LocalBody::File(None)
        {
            local.body = LocalBody::File(Some(*content));
        }
        let came_back = entry.synced.is_none() && entry.local.is_some();
        self.agenda.clear_retry(id);
        self.put(id, &entry)?;
        if came_back {
            // Deleted there, and meanwhile something is here again: that is a new node.
            let fresh = self.fresh_id();
            self.give_local(id, fresh)?;
        }
        if let Some(parent) = parent {
            // A directory's deletion waits for that of its entries.
            self.agenda.wake(parent);
        }
        Ok(())
    }

    fn refused(
        &mut self,
        id: NodeId,
        pushed: &Pushed,
        refusal: Refusal,
        head: Rev,
    ) -> Result<(), T::Error> {
        let now_ms = self.now.ms;
        match refusal {
            Refusal::Stale { .. } | Refusal::Illegal { .. }
                if pushed.is_create && self.trees.get(id)?.remote.is_none() =>
            {
                // The id was used before (a lineage that began anew): go on under another.
                let fresh = self.fresh_id();
                self.give_local(id, fresh)?;
                self.agenda.schedule(fresh);
            }
            Refusal::Stale { .. }
            | Refusal::NoParent
            | Refusal::NameTaken { .. }
            | Refusal::Cycle
            | Refusal::NotEmpty => {
                // What we planned on is out of date: plan again when we know what the server knew.
                // If that is so already, something else is wrong; do not ask in a tight loop.
                if head > self.trees.meta().cursor {
                    self.agenda.wait_for_rev(id, head);
                }
                self.agenda.retry(id, now_ms);
            }
            Refusal::MissingContent { .. } => {
                self.uploaded.remove(&id);
                self.agenda.retry(id, now_ms);
            }
            Refusal::NeedsApproval => self.deletion_refused(),
            Refusal::OverQuota => {
                let known = self.trees.get(id)?.remote.map(|remote| remote.node.body);
                self.over_quota(id, pushed.node.as_ref().map(|node| &node.body), known.as_ref());
            }
            Refusal::Illegal { .. } => {
                self.problem(Subject::Node(id), refusal.to_string());
                self.agenda.retry_slowly(id, now_ms);
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use crate::engine::memory::MemoryTrees;
    use crate::engine::seam::{Action, Event, JournalPage, Look, Stat};
    use crate::engine::trees::Trees as _;
    use crate::engine::{Engine, Now, Settings};
    use crate::model::{
        Attrs, Body, Digest, IdSource, Kind, Lineage, Name, Node, NodeId, Place, Rev, Timestamp,
        Versioned,
    };

    use super::RESUBSCRIBE_MS;

    const ATTRS: Attrs = Attrs { mode: 0o755 };

    struct Device {
        engine: Engine<MemoryTrees>,
        now: Now,
    }

    impl Device {
        fn hears(&mut self, event: Event) {
            self.engine.handle(self.now, event).unwrap();
        }

        /// How many directories it makes now.
        fn makes(&mut self) -> usize {
            let mut actions = Vec::new();
            self.engine.poll(self.now, &mut actions).unwrap();
            actions.iter().filter(|action| matches!(action, Action::Apply { .. })).count()
        }

        fn online(&mut self, from: u64, head: u64) {
            self.hears(Event::Offline);
            let lineage = Lineage::from_bytes([1; 16]);
            self.hears(Event::Online { lineage, from: Rev(from), head: Rev(head) });
        }

        fn page(&mut self, dirs: &[u8], upto: u64, head: u64, digest: Option<Digest>) {
            let dir = |number: &u8| {
                let name = Name::new([b'a' + number]).unwrap();
                let place = Place { parent: NodeId::ROOT, name };
                let node = Some(Node { place, body: Body::Dir, attrs: ATTRS });
                let id = NodeId::from_bytes([*number; 16]);
                Versioned { id, rev: Rev(u64::from(*number)), node }
            };
            let nodes = dirs.iter().map(dir).collect();
            let (upto, head) = (Rev(upto), Rev(head));
            self.hears(Event::Page(JournalPage { upto, head, consistent: true, nodes, digest }));
        }
    }

    #[test]
    fn a_journal_is_acted_on_once_its_digest_agrees_and_heard_anew_when_it_does_not() {
        let now = Now { ms: 1, wall: Timestamp::default() };
        let engine =
            Engine::new(MemoryTrees::new(), Settings::default(), IdSource::new([1; 32])).unwrap();
        let mut device = Device { engine, now };
        let zero = Timestamp::default();
        let (birth, mtime, ctime) = (zero, zero, zero);
        let dir =
            Stat { kind: Some(Kind::Dir), ino: 1, birth, size: 0, mtime, ctime, attrs: ATTRS };
        device.hears(Event::Rescan);
        device.makes();
        let look = Look::Entries { dir, entries: vec![] };
        device.hears(Event::Looked { dir: NodeId::ROOT, names: None, look });

        // From the beginning: nothing can be contradicted.
        device.online(0, 3);
        device.page(&[1], 1, 3, None);
        assert_eq!(device.makes(), 1);
        device.page(&[2, 3], 3, 3, None);
        assert_eq!(device.makes(), 2);

        // Going on: nothing is done before the end of the catch-up agrees.
        device.online(3, 5);
        device.page(&[4], 4, 5, None);
        assert_eq!(device.makes(), 0);
        let mut agrees = device.engine.trees().meta().digest;
        let name = Name::new([b'a' + 5]).unwrap();
        let place = Place { parent: NodeId::ROOT, name };
        let five = Node { place, body: Body::Dir, attrs: ATTRS };
        agrees.add(NodeId::from_bytes([5; 16]), Rev(5), &five);
        device.page(&[5], 5, 5, Some(agrees));
        assert_eq!(device.makes(), 2);
        assert!(!device.engine.needs_resubscribe());

        // It does not: all is heard anew, and only then anything is done.
        device.online(5, 7);
        device.page(&[6], 6, 7, None);
        device.page(&[7], 7, 7, Some(Digest::default()));
        assert_eq!(device.makes(), 0);
        assert!(device.engine.needs_resubscribe());
        assert_eq!(device.engine.trees().meta().cursor, Rev::ZERO);
        device.online(0, 7);
        device.page(&[1, 2, 3, 4, 5, 6, 7], 7, 7, None);
        assert_eq!(device.makes(), 2);

        // Again, and too soon: it waits, and does nothing meanwhile.
        device.online(7, 8);
        device.page(&[8], 8, 8, Some(Digest::default()));
        assert_eq!(device.makes(), 0);
        assert!(!device.engine.needs_resubscribe());
        let due = device.engine.wake_at_ms().unwrap();
        assert!(due <= 1 + RESUBSCRIBE_MS, "{due}");
        device.now.ms = 1 + RESUBSCRIBE_MS;
        assert_eq!(device.makes(), 0);
        assert!(device.engine.needs_resubscribe());
    }
}
