//! The engine: three trees, the planner, the conflict rules. Sans-IO.
//!
//! It knows only `model`: no tokio, no clock, no randomness, no file system. Events come in, actions
//! go out ([`seam`]); time and the seed for node ids are passed in; the trees live behind a trait
//! ([`trees`]).
//!
//! The flow: looks at the disk become the local tree (`observe`), pages of the journal the remote
//! tree (`journal`); a node whose three states differ is planned (`decide` for the node alone,
//! `plan` for its neighbours), and what became of an action is taken in (`outcome`). What the
//! engine holds beside the trees (`agenda`, looks and actions under way, problems) is bounded, and
//! can be lost at any moment: it follows from the trees.

mod agenda;
mod aliases;
pub mod apply;
mod copies;
mod decide;
pub mod defect;
mod deletions;
pub mod folder;
mod gone;
mod journal;
pub mod kept;
pub mod memory;
mod observe;
mod outcome;
mod plan;
mod putting;
mod quota;
pub mod rest;
mod rings;
pub mod scope;
pub mod seam;
pub mod trees;
pub mod why;

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet, VecDeque};
use std::sync::Arc;

use self::agenda::{Agenda, Room};
use self::aliases::Aliases;
use self::copies::Copies;
use self::decide::{Need, decide};
use self::deletions::Deletions;
use self::gone::Gone;
use self::observe::Looks;
use self::putting::Puttings;
pub use self::quota::Lack;
use self::quota::Quota;
use self::rings::Rings;
use self::scope::Scope;
use self::seam::{Action, Awaited, DirRef, Event, Expected, Outgoing, Spot, Stat};
use self::trees::{Aspects, Entry, Local, LocalBody, Sent, Trees};
use crate::model::{
    Body, ChangeOp, Content, Flow, IdSource, Name, Node, NodeId, Place, RelPath, Rev, Timestamp,
};

/// The time, as the driver passes it in.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Now {
    /// Milliseconds of a clock that never goes back.
    pub ms: u64,
    /// The time of day.
    pub wall: Timestamp,
}

/// What the engine is told once.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Contents up to this length travel inside the commit.
    pub inline_len_max: u32,
    /// Set when the machine stopped uncleanly since this folder was last watched (a power cut). What
    /// the first look finds missing or changed may then be what the power took, not what a person
    /// did: it is never sent over what the server has, and nothing is deleted. Files that changed at
    /// this time or later may even have lost bytes without a trace, and are read again.
    pub suspect_since: Option<Timestamp>,
    /// How long a name must be missing before it counts as deleted, in milliseconds.
    pub missing_settle_ms: u64,
    /// Which way changes go.
    pub flow: Flow,
    /// The directories of the drive that are left out on this device. Told before anything is looked
    /// at, so that nothing that is not here because of it is ever taken for deleted.
    pub left_out: BTreeSet<NodeId>,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            inline_len_max: 64 * 1024,
            suspect_since: None,
            missing_settle_ms: 150,
            flow: Flow::Both,
            left_out: BTreeSet::new(),
        }
    }
}

/// The most nodes whose bytes are being read.
const HASHES_MAX: usize = 64;
/// The most uploads of larger contents under way.
const UPLOADS_MAX: usize = 16;
/// The most disk operations under way.
const APPLIES_MAX: usize = 1024;
/// The most commits under way.
const COMMITS_MAX: usize = 8;
/// The most changes in a commit.
const COMMIT_CHANGES_MAX: usize = 512;
/// A commit is closed once it brings this many bytes of small contents.
const COMMIT_BYTES_MAX: u64 = 1024 * 1024;
/// The most nodes planned in one poll, so that events are taken in between.
const PLANS_PER_POLL: usize = 4096;
/// How often one node is planned in one poll before it is put off for a while.
const PLANS_OF_ONE_MAX: u32 = 64;
/// The most problems held with their text; more are counted only.
const PROBLEMS_MAX: usize = 10_000;
/// So many files of the same content are tried as a source.
const SOURCES_MAX: usize = 8;
/// The most directory paths remembered.
const PATHS_MAX: usize = 4096;
/// An engine that is not in sync looks over its dirty nodes at least this often.
const SWEEP_MS: u64 = 10_000;

/// What a problem is about.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Subject {
    /// A node.
    Node(NodeId),
    /// The listing of a directory.
    Listing(NodeId),
    /// A name in a directory, where no node is.
    Spot(NodeId, Name),
    /// A node that is on this disk under another name than its own.
    Alias(NodeId),
}

/// An action under way for a node.
#[derive(Debug, Clone)]
enum Flight {
    Hash,
    Upload { content: Content },
    Commit { pushed: Pushed },
    Apply(Applying),
}

/// What a commit asks for: the node as it will be on the server; none for a deletion.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Pushed {
    node: Option<Node>,
    is_create: bool,
    /// The rev of the version that it is based on.
    base: Rev,
    /// Which aspects are told.
    told: Aspects,
}

/// A commit under way.
#[derive(Debug, Clone, Default)]
struct Batch {
    /// The nodes it changes, in order.
    ids: Vec<NodeId>,
    /// How many of them it deletes.
    deletions: u64,
}

impl Batch {
    fn of(changes: &[Outgoing]) -> Self {
        let deletions = changes.iter().filter(|one| one.change.op == ChangeOp::Delete).count();
        let ids = changes.iter().map(|outgoing| outgoing.change.node).collect();
        Self { ids, deletions: deletions as u64 }
    }
}

/// A disk operation under way: what it makes of the node.
#[derive(Debug, Clone)]
struct Applying {
    what: ApplyKind,
    /// The names on disk that it may fill or free; looks at them wait.
    targets: Vec<(NodeId, Name)>,
}

#[derive(Debug, Clone)]
enum ApplyKind {
    /// The node appears at its place, or gets a new body or attributes: it is then `node` on this
    /// disk, and `base` is what both sides agreed on.
    Put {
        node: Node,
        alias: Option<Name>,
        base: Node,
    },
    /// It moves.
    Move {
        node: Node,
        alias: Option<Name>,
        /// It was parked, or in a directory that is: no look went there.
        was_out_of_sight: bool,
    },
    Park,
    /// It comes back from where it was parked, to this place, which nobody agreed on.
    Unpark {
        place: Place,
    },
    SetAside,
    Remove,
}

/// What is known of the connection.
#[derive(Debug, Default)]
struct Link {
    online: bool,
    paused: bool,
    head: Rev,
    /// The newest rev when the connection began.
    head_at_first: Rev,
    /// The newest rev that a commit of ours got; pages may be behind it.
    newest_own: Rev,
    agrees: Option<bool>,
    /// Whether what the server tells on this connection goes on from what is known here.
    is_proved: bool,
    /// Whether it was found that it does not, and nothing was done about it yet.
    is_contradicted: bool,
    needs_resubscribe: bool,
    /// Before this time the journal is not heard anew again because of a digest.
    resubscribe_after_ms: u64,
}

/// The engine of one folder.
#[derive(Debug)]
pub struct Engine<T> {
    trees: T,
    settings: Settings,
    ids: IdSource,
    now: Now,
    looks: Looks,
    agenda: Agenda,
    flights: BTreeMap<NodeId, Flight>,
    counts: Counts,
    /// Names on disk that an operation under way may fill or free, with whose operation it is.
    targets: BTreeMap<(NodeId, Name), NodeId>,
    link: Link,
    batches: HashMap<u64, Batch>,
    next_batch: u64,
    outbox: Vec<Outgoing>,
    outbox_bytes: u64,
    deletions: Deletions,
    gone: Gone,
    quota: Quota,
    /// Contents that the server has by an upload of ours, until their change is committed.
    uploaded: HashMap<NodeId, Content>,
    /// Changes sent on a connection that broke before the answer came, perhaps in an earlier life of
    /// this device: what each makes of its node.
    in_doubt: HashMap<NodeId, Sent>,
    /// Updates in doubt of which the journal tells no more than that others came since: the server is
    /// asked again, and answers as it did, or would have. With what both agreed on before, which counts
    /// again when the server refuses.
    unsure: HashMap<NodeId, (Sent, Option<Node>)>,
    /// The commits they were in, as the trees remember them.
    commits_in_doubt: Vec<u64>,
    /// How far directories that are not here yet are below one that is, as far as that was asked in
    /// this poll: a deep tree is not walked anew for each node in it.
    depths: HashMap<NodeId, usize>,
    /// Nodes that wait for each other: for the server to hold what they need, and for this disk to.
    rings_there: Rings,
    rings_here: Rings,
    /// What is being put on this disk, or was when an earlier life of this agent ended.
    puttings: Puttings,
    /// Places that nodes have in the drive and the disk cannot hold, with the names they get instead.
    aliases: Aliases,
    /// Conflict copies that the server has.
    copies: Copies,
    /// What is wanted on this disk.
    scope: Scope,
    /// Directories that were not empty although nothing of ours was in them.
    stubborn: HashMap<NodeId, u32>,
    problems: BTreeMap<Subject, String>,
    paths: HashMap<NodeId, Arc<RelPath>>,
    root_ino: u64,
    pending: VecDeque<Action>,
    next_sweep_ms: u64,
}

/// How many actions of each kind are under way.
#[derive(Debug, Default)]
struct Counts {
    hashes: usize,
    uploads: usize,
    applies: usize,
}

/// After an unclean stop a deletion that nobody was told of yet may have been half of a rename, the
/// other half of which the power took: what the server has comes again. Returns the directories and the
/// files that are parked.
fn forget_deletions<T: Trees>(trees: &mut T) -> Result<[Vec<NodeId>; 2], T::Error> {
    let mut after = 0;
    let (mut dirs, mut files) = (Vec::new(), Vec::new());
    loop {
        let dirty = trees.dirty(after, 512)?;
        let Some((last, _)) = dirty.last() else {
            return Ok([dirs, files]);
        };
        after = *last;
        for (_, id) in dirty {
            let mut entry = trees.get(id)?;
            match entry.local.as_ref().filter(|here| here.parked).map(|here| &here.body) {
                Some(LocalBody::Dir) => dirs.push(id),
                Some(LocalBody::File(_)) => files.push(id),
                Some(LocalBody::Link(_)) | None => {}
            }
            if entry.is_deletion() {
                entry.synced = None;
                trees.put(id, &entry)?;
            }
        }
    }
}

impl<T: Trees> Engine<T> {
    /// Returns an engine over these trees; it does nothing before [`Event::Rescan`].
    ///
    /// # Errors
    /// When the trees cannot be read.
    pub fn new(mut trees: T, mut settings: Settings, ids: IdSource) -> Result<Self, T::Error> {
        let mut looks = Looks::default();
        if settings.suspect_since.is_some() {
            let [dirs, files] = forget_deletions(&mut trees)?;
            looks.out_of_sight = dirs;
            looks.suspects.extend(files);
        }
        if trees.totals().flow != settings.flow {
            trees.count_for(settings.flow)?;
        }
        let sent = trees.sent()?;
        let commits_in_doubt: Vec<u64> = sent.iter().map(|(commit, _)| *commit).collect();
        let next_batch = commits_in_doubt.last().map_or(1, |last| last + 1);
        let in_doubt = if settings.suspect_since.is_some() {
            // What was sent may be newer than what the power left on disk: it is no merge base.
            HashMap::new()
        } else {
            let sent = sent.into_iter().flat_map(|(_, sent)| sent);
            sent.map(|sent| (sent.node, sent)).collect()
        };
        let puttings = Puttings::new(trees.puttings()?);
        let left_out = std::mem::take(&mut settings.left_out);
        let scope = Scope::new(left_out, trees.totals().has_left_out());
        Ok(Self {
            trees,
            settings,
            ids,
            now: Now::default(),
            looks,
            agenda: Agenda::default(),
            flights: BTreeMap::new(),
            counts: Counts::default(),
            targets: BTreeMap::new(),
            link: Link::default(),
            batches: HashMap::new(),
            next_batch,
            outbox: Vec::new(),
            outbox_bytes: 0,
            deletions: Deletions::default(),
            gone: Gone::default(),
            quota: Quota::default(),
            uploaded: HashMap::new(),
            in_doubt,
            unsure: HashMap::new(),
            commits_in_doubt,
            depths: HashMap::new(),
            rings_there: Rings::default(),
            rings_here: Rings::default(),
            puttings,
            aliases: Aliases::default(),
            copies: Copies::default(),
            scope,
            stubborn: HashMap::new(),
            problems: BTreeMap::new(),
            paths: HashMap::new(),
            root_ino: 0,
            pending: VecDeque::new(),
            next_sweep_ms: 0,
        })
    }

    /// Takes an event in. What follows from it comes with the next [`Engine::poll`].
    ///
    /// # Errors
    /// When the trees cannot be read or written; the engine must then be dropped.
    pub fn handle(&mut self, now: Now, event: Event) -> Result<(), T::Error> {
        self.now = now;
        match event {
            Event::Touched { dir, name } => self.touched(dir, name),
            Event::Rescan => self.looks.rescan(),
            Event::Looked { dir, names, look } => self.looked(dir, names, look)?,
            Event::Hashed { node, hashed } => self.hashed(node, hashed)?,
            Event::Uploaded { node, uploaded } => self.uploaded(node, uploaded)?,
            Event::Applied { node, outcome } => self.applied(node, outcome)?,
            Event::Committed { batch, results, head } => self.committed(batch, results, head)?,
            Event::Online { lineage, from, head } => self.online(lineage, from, head)?,
            Event::Offline => self.offline(),
            Event::Page(page) => self.page(page)?,
            Event::Deletions(word) => self.heard_word(word),
            Event::Usage(usage) => self.heard_usage(usage),
            Event::Paused(paused) => {
                self.link.paused = paused;
                self.begin_telling();
                self.agenda.sweep();
            }
        }
        Ok(())
    }

    /// Appends what is to be done now.
    ///
    /// # Errors
    /// When the trees cannot be read or written; the engine must then be dropped.
    pub fn poll(&mut self, now: Now, actions: &mut Vec<Action>) -> Result<(), T::Error> {
        self.now = now;
        self.agenda.pass_time(now.ms);
        self.hear_anew()?;
        self.advance_scope()?;
        self.advance_looks(actions)?;
        self.advance_deletions(actions)?;
        self.advance_gone();
        if now.ms >= self.next_sweep_ms {
            self.next_sweep_ms = now.ms + SWEEP_MS;
            if self.flights.is_empty() && self.pending() > 0 {
                self.agenda.sweep();
            }
        }
        self.depths.clear();
        self.rings_there.renew();
        self.rings_here.renew();
        let mut budget = PLANS_PER_POLL;
        let mut plans: HashMap<NodeId, u32> = HashMap::new();
        loop {
            while budget > 0
                && let Some(id) = self.next()
            {
                budget -= 1;
                let times = plans.entry(id).or_default();
                *times += 1;
                if *times > PLANS_OF_ONE_MAX && !self.flights.contains_key(&id) {
                    // It and others make each other ready, and nothing comes of it.
                    self.agenda.retry(id, now.ms);
                    continue;
                }
                self.plan(id, actions)?;
            }
            if budget == 0 {
                break;
            }
            let Some(position) = self.agenda.sweep_position() else {
                break;
            };
            let found = self.trees.dirty(position, 512)?;
            self.agenda.sweep_to(found.last().map(|(position, _)| *position));
            for (_, id) in found {
                if !self.flights.contains_key(&id) {
                    self.agenda.schedule(id);
                }
            }
        }
        self.flush(actions)?;
        self.advance_looks(actions)?;
        actions.extend(self.pending.drain(..));
        if self.is_settled() {
            self.note_in_sync()?;
        }
        Ok(())
    }

    /// Returns the time in milliseconds by which [`Engine::poll`] must be called even if nothing
    /// happens.
    pub fn wake_at_ms(&self) -> Option<u64> {
        if self.has_next() {
            return Some(self.now.ms);
        }
        let sweep = (self.pending() > 0).then_some(self.next_sweep_ms);
        let due = [
            self.agenda.next_due_ms(),
            self.looks.next_due_ms(),
            self.deletions_due_ms(),
            self.gone_due_ms(),
            self.hear_anew_at_ms(),
            sweep,
        ];
        due.into_iter().flatten().min()
    }

    /// Takes the next node to plan: one that is ready, or one for which there is room now. One step that
    /// ends lets one node in, so that the others, which there may be many of, are not looked at for it.
    fn next(&mut self) -> Option<NodeId> {
        self.agenda
            .next()
            .or_else(|| {
                let room = Room::ALL.into_iter().find(|room| self.may_admit(*room))?;
                self.agenda.admit(room)
            })
            .or_else(|| self.quota.admit())
    }

    /// Returns whether there is something to plan that waits for nothing.
    fn has_next(&self) -> bool {
        self.agenda.has_ready()
            || self.agenda.may_sweep()
            || !self.scope.is_settled()
            || Room::ALL.into_iter().any(|room| self.may_admit(room))
            || self.quota.may_admit()
    }

    /// Returns whether a node waits for room of this kind, and there is some.
    fn may_admit(&self, room: Room) -> bool {
        self.agenda.crowded_out(room) > 0 && self.has_room(room)
    }

    /// Returns whether one more step of that kind may begin.
    fn has_room(&self, room: Room) -> bool {
        match room {
            // What is read is kept until it is sent: no more is read than can be sent soon.
            Room::Hashes => {
                let is_ahead = self.agenda.crowded_out(Room::Commits) >= COMMIT_CHANGES_MAX;
                self.counts.hashes < HASHES_MAX && !is_ahead
            }
            Room::Uploads => self.counts.uploads < UPLOADS_MAX,
            Room::Commits => {
                self.batches.len() + usize::from(!self.outbox.is_empty()) <= COMMITS_MAX
            }
            Room::Applies => self.counts.applies < APPLIES_MAX,
        }
    }

    /// Returns how many nodes are dirty; deletions that are held do not count.
    fn pending(&self) -> u64 {
        let totals = self.trees.totals();
        let held = if self.are_deletions_held() { totals.deletions } else { 0 };
        (totals.uploads + totals.downloads).saturating_sub(held)
    }

    /// Returns what a node needs next.
    fn decide(&self, entry: &Entry) -> Need {
        decide(entry, self.settings.flow)
    }

    /// Returns the trees.
    pub fn trees(&self) -> &T {
        &self.trees
    }

    /// Returns the trees, for checkpoints.
    pub fn trees_mut(&mut self) -> &mut T {
        &mut self.trees
    }

    /// Returns where on this disk a larger file of the same content lies, and how it was last seen: to be
    /// copied from there instead of fetched.
    ///
    /// # Errors
    /// When the trees cannot be read.
    pub fn source_of(&mut self, content: &Content) -> Result<Option<(Spot, Expected)>, T::Error> {
        let Content::List { id: list, .. } = content else {
            return Ok(None);
        };
        for id in self.trees.local_with_list(*list, SOURCES_MAX)? {
            let Some(local) = self.trees.get(id)?.local else { continue };
            if let Some(at) = self.spot(&local)? {
                return Ok(Some((at, Expected { stat: local.stat, content: Some(*content) })));
            }
        }
        Ok(None)
    }

    /// Returns whether a content that another device may commit for a node would have to be fetched, and
    /// what it may be made of: a guess, nothing is planned by it.
    pub fn awaits(&mut self, id: NodeId, content: &Content) -> Result<Option<Awaited>, T::Error> {
        if id == NodeId::ROOT || self.source_of(content)?.is_some() {
            return Ok(None);
        }
        let entry = self.trees.get(id)?;
        if entry.left_out || self.settings.flow == Flow::SendOnly {
            return Ok(None);
        }
        let is_told = entry.remote.is_some_and(|remote| match remote.node.body {
            Body::File { content: told, .. } => told == *content,
            Body::Dir | Body::Link { .. } => true,
        });
        if is_told {
            return Ok(None);
        }
        let old = match entry.local {
            Some(local) => {
                let expected = plan::expected(&local);
                self.spot(&local)?.map(|at| (at, expected))
            }
            None => None,
        };
        Ok(Some(Awaited { old }))
    }

    /// Returns what a person should know, with its path.
    pub fn problems(&self) -> Vec<(RelPath, String)> {
        let told: BTreeSet<(RelPath, String)> = self
            .problems
            .iter()
            .map(|(subject, reason)| {
                let path = match subject {
                    Subject::Node(id) | Subject::Listing(id) | Subject::Alias(id) => {
                        self.trees.path_of(*id)
                    }
                    Subject::Spot(dir, name) => self.trees.path_of(*dir).join(name),
                };
                (path, reason.clone())
            })
            .chain(self.lacks())
            // What is in the way of a node of that name is told once.
            .collect();
        told.into_iter().collect()
    }

    /// Returns a path for people, from whichever tree has the node.
    pub fn path_for_people(&self, id: NodeId) -> RelPath {
        self.trees.path_of(id)
    }

    /// Returns where a node is in the drive, as last heard.
    ///
    /// # Errors
    /// When the trees cannot be read.
    pub fn path_in_drive(&self, id: NodeId) -> Result<RelPath, T::Error> {
        let mut names = Vec::new();
        let mut at = id;
        while at != NodeId::ROOT && names.len() < 1000 {
            let Some(remote) = self.trees.get(at)?.remote else { break };
            names.push(remote.node.place.name);
            at = remote.node.place.parent;
        }
        names.reverse();
        Ok(RelPath::from_names(names))
    }

    /// Returns how many paths have a problem.
    pub fn problem_count(&self) -> usize {
        self.problems.len() + self.quota.held_count()
    }

    /// Returns how many looks at the whole folder are complete.
    pub fn rescans_done(&self) -> u64 {
        self.looks.rescans_done
    }

    /// Returns whether everything on disk was looked at once, and all of it is in the trees.
    pub fn has_looked(&self) -> bool {
        self.looks.is_known && self.looks.torn.is_empty() && self.looks.unread.is_empty()
    }

    /// Returns whether there is nothing to do: what is still dirty has a problem that a person has
    /// to see to.
    pub fn is_settled(&self) -> bool {
        self.link.online
            && self.trees.meta().consistent
            && self.trees.meta().cursor >= self.link.head
            && self.looks.is_idle()
            && self.looks.rescans_done > 0
            && self.flights.is_empty()
            && self.agenda.is_idle()
            && self.scope.is_settled()
            && !self.quota.may_admit()
            && self.all_pending_is_known()
    }

    /// Returns whether each change that is pending is a problem or held, or waits for one that is.
    fn all_pending_is_known(&self) -> bool {
        if self.quota.holds_more() {
            // They cannot be counted, and nothing else goes on.
            return true;
        }
        let pending = self.pending();
        let problems = self.problems.keys().filter_map(|key| match key {
            Subject::Node(id) => Some(*id),
            _ => None,
        });
        let known: HashSet<NodeId> = problems.chain(self.quota.held().map(|(id, _)| id)).collect();
        if pending <= known.len() as u64 {
            return true;
        }
        let is_held = self.are_deletions_held();
        let is_held_deletion = |entry: &Entry| is_held && entry.is_deletion();
        let mut blockers = known.clone();
        if is_held {
            blockers.extend(
                self.agenda
                    .blockers()
                    .filter(|id| self.trees.get(*id).is_ok_and(|entry| entry.is_deletion())),
            );
        }
        let waiting = self.agenda.waiting_behind(&blockers);
        let is_pending = |id: &NodeId| {
            self.trees.get(*id).is_ok_and(|entry| entry.is_dirty() && !is_held_deletion(&entry))
        };
        pending <= (known.len() + waiting.into_iter().filter(is_pending).count()) as u64
    }

    /// Returns whether the digest over the remote tree was equal to the server's when last compared.
    pub fn agrees(&self) -> Option<bool> {
        self.link.agrees
    }

    /// Returns, once, whether the journal must be subscribed to anew (from cursor 0).
    pub fn needs_resubscribe(&mut self) -> bool {
        std::mem::take(&mut self.link.needs_resubscribe)
    }

    /// Makes everything ready that waits for its time: a person asked.
    pub fn retry_now(&mut self) {
        self.agenda.retry_all_now();
        self.agenda.sweep();
    }

    /// Returns what the engine waits for, for a developer's eyes.
    pub fn describe_waits(&self) -> String {
        format!("{:?} {:?} {:?} {:?}", self.flights, self.targets, self.looks, self.agenda)
    }

    fn note_in_sync(&mut self) -> Result<(), T::Error> {
        let mut meta = self.trees.meta();
        if meta.last_sync.map(|time| time.secs) != Some(self.now.wall.secs) || !meta.linked {
            meta.last_sync = Some(self.now.wall);
            meta.linked = true;
            self.trees.set_meta(meta)?;
        }
        Ok(())
    }

    /// Writes an entry, and readies whoever has to do with it.
    fn put(&mut self, id: NodeId, entry: &Entry) -> Result<(), T::Error> {
        if self.is_all_wanted() {
            return self.write(id, entry);
        }
        let mut entry = entry.clone();
        self.note_place(id, &entry)?;
        self.fit(id, &mut entry)?;
        self.note_mark(id, &entry)?;
        self.write(id, &entry)
    }

    fn write(&mut self, id: NodeId, entry: &Entry) -> Result<(), T::Error> {
        self.trees.put(id, entry)?;
        self.rings_there.forget();
        self.rings_here.forget();
        self.tell_alias(id, entry.local.as_ref());
        if entry.local.is_none() {
            // What is not here is no directory that cannot be read, and nothing is in it.
            self.solve(&Subject::Listing(id));
            self.solve_spots(id);
        }
        if entry.is_empty() {
            self.aliases.forget(id);
        }
        if entry.local.as_ref().is_none_or(|local| !local.parked) {
            self.looks.parked.remove(&id);
        }
        self.agenda.wake(id);
        if entry.is_dirty() {
            self.agenda.schedule(id);
        } else {
            self.quota.free(id);
            self.quota.release(id);
            self.agenda.clear_retry(id);
            self.solve(&Subject::Node(id));
        }
        Ok(())
    }

    /// A node that has another name here than in the drive is a problem, for as long as it has.
    fn tell_alias(&mut self, id: NodeId, local: Option<&Local>) {
        match local.filter(|local| local.alias.is_some()) {
            Some(local) => self.problem(
                Subject::Alias(id),
                format!(
                    "In the drive its name is \"{}\", which this disk cannot hold, or holds for the \
                     same as another's there; rename it, here or on another device",
                    local.place.name
                ),
            ),
            None => self.solve(&Subject::Alias(id)),
        }
    }

    fn problem(&mut self, subject: Subject, reason: impl Into<String>) {
        if let Subject::Node(id) = &subject
            && self.trees.get(*id).is_ok_and(|entry| !entry.is_dirty())
        {
            // It came to nothing, and meanwhile there is nothing left to do for it.
            return;
        }
        if self.problems.len() < PROBLEMS_MAX || self.problems.contains_key(&subject) {
            self.problems.insert(subject, reason.into());
        }
    }

    fn solve(&mut self, subject: &Subject) {
        if !self.problems.is_empty() {
            self.problems.remove(subject);
        }
    }

    /// Solves the problems of all names in a directory where no node is.
    fn solve_spots(&mut self, dir: NodeId) {
        // The first name of all.
        let Ok(first) = Name::new([1]) else { return };
        let spots = self.problems.range(Subject::Spot(dir, first)..).map(|(subject, _)| subject);
        let spots =
            spots.take_while(|subject| matches!(subject, Subject::Spot(of, _) if *of == dir));
        for spot in spots.cloned().collect::<Vec<_>>() {
            self.problems.remove(&spot);
        }
    }

    /// Returns a directory as it is on this disk; nothing when it is not there.
    fn dir_ref(&mut self, id: NodeId) -> Result<Option<DirRef>, T::Error> {
        if id == NodeId::ROOT {
            let path = Arc::new(RelPath::ROOT);
            return Ok(Some(DirRef { id, path, ino: self.root_ino }));
        }
        let entry = self.trees.get(id)?;
        let Some(local) = entry.local.filter(|local| local.body == LocalBody::Dir) else {
            return Ok(None);
        };
        let ino = local.stat.ino;
        Ok(self.local_path(id, &local)?.map(|path| DirRef { id, path, ino }))
    }

    fn local_path(&mut self, id: NodeId, local: &Local) -> Result<Option<Arc<RelPath>>, T::Error> {
        if let Some(path) = self.paths.get(&id) {
            return Ok(Some(path.clone()));
        }
        let mut names = Vec::new();
        let mut at = local.clone();
        let mut node = id;
        loop {
            if at.parked {
                let mut path = parked_path(node).names().to_vec();
                path.extend(names.into_iter().rev());
                return Ok(Some(Arc::new(RelPath::from_names(path))));
            }
            names.push(at.disk_name().clone());
            node = at.place.parent;
            if node == NodeId::ROOT {
                break;
            }
            // A chain longer than any path can be has lost its way (a cycle in a damaged state).
            if names.len() > 100_000 {
                return Ok(None);
            }
            match self.trees.get(node)?.local {
                Some(parent) => at = parent,
                None => return Ok(None),
            }
        }
        names.reverse();
        let path = Arc::new(RelPath::from_names(names));
        if self.paths.len() >= PATHS_MAX {
            self.paths.clear();
        }
        self.paths.insert(id, path.clone());
        Ok(Some(path))
    }

    /// Returns where a node is on this disk; nothing when it is parked or its directory is gone.
    fn spot(&mut self, local: &Local) -> Result<Option<Spot>, T::Error> {
        if local.parked {
            return Ok(None);
        }
        let name = local.disk_name().clone();
        Ok(self.dir_ref(local.place.parent)?.map(|dir| Spot { dir, name }))
    }

    /// Begins an action for a node.
    fn launch(&mut self, id: NodeId, flight: Flight) {
        match &flight {
            Flight::Hash => self.counts.hashes += 1,
            Flight::Upload { .. } => self.counts.uploads += 1,
            Flight::Apply(applying) => {
                self.counts.applies += 1;
                for target in &applying.targets {
                    self.targets.insert(target.clone(), id);
                }
            }
            Flight::Commit { .. } => {}
        }
        self.flights.insert(id, flight);
    }

    /// Ends the action under way for a node, and readies it and whoever waited for it.
    fn land(&mut self, id: NodeId) -> Option<Flight> {
        let flight = self.flights.remove(&id)?;
        match &flight {
            Flight::Hash => self.counts.hashes -= 1,
            Flight::Upload { .. } => self.counts.uploads -= 1,
            Flight::Apply(applying) => {
                self.counts.applies -= 1;
                for target in &applying.targets {
                    if self.targets.get(target) == Some(&id) {
                        self.targets.remove(target);
                    }
                }
            }
            Flight::Commit { .. } => self.quota.release(id),
        }
        self.agenda.schedule(id);
        self.agenda.wake(id);
        self.looks.operation_over(id);
        Some(flight)
    }

    /// Gives the local part of one node to another: two nodes turned out to be one, or a node goes
    /// on under a new id. Entries of a directory come along, in the local tree and in the base.
    fn give_local(&mut self, from: NodeId, to: NodeId) -> Result<(), T::Error> {
        let mut old = self.trees.get(from)?;
        let Some(local) = old.local.take() else {
            return Ok(());
        };
        let is_dir = local.body == LocalBody::Dir;
        self.looks.rename_node(from, local.place.parent, local.disk_name().clone());
        old.synced = None;
        self.forget_putting(from)?;
        self.put(from, &old)?;
        let mut new = self.trees.get(to)?;
        new.local = Some(local);
        self.put(to, &new)?;
        if let Some(content) = self.uploaded.remove(&from) {
            self.uploaded.insert(to, content);
        }
        if is_dir {
            self.paths.clear();
            self.for_each_in(from, |engine, child| {
                let mut entry = engine.trees.get(child)?;
                if let Some(local) = &mut entry.local {
                    local.place.parent = to;
                }
                if let Some(base) = &mut entry.synced
                    && base.place.parent == from
                {
                    base.place.parent = to;
                }
                engine.put(child, &entry)
            })?;
            let moved: Vec<_> =
                self.targets.keys().filter(|(dir, _)| *dir == from).cloned().collect();
            for (dir, name) in moved {
                if let Some(id) = self.targets.remove(&(dir, name.clone())) {
                    self.targets.insert((to, name), id);
                }
            }
            self.looks.rename_dir(from, to);
        }
        Ok(())
    }

    /// Does something with each node whose `local` is in a directory, parked ones included, a page of them at
    /// a time.
    fn for_each_in(
        &mut self,
        dir: NodeId,
        mut act: impl FnMut(&mut Self, NodeId) -> Result<(), T::Error>,
    ) -> Result<(), T::Error> {
        let mut after = None;
        loop {
            let children = self.trees.local_children(dir, after, 512)?;
            let Some(last) = children.last() else { return Ok(()) };
            after = Some(*last);
            for child in children {
                act(self, child)?;
            }
        }
    }

    /// Returns whether `dir` is `node` or below it, by the local tree.
    fn is_below_here(&self, dir: NodeId, node: NodeId) -> Result<bool, T::Error> {
        self.is_below(dir, node, |entry| entry.local.as_ref().map(|local| local.place.parent))
    }

    /// Returns whether `dir` is `node` or below it, by the remote tree.
    fn is_below_there(&self, dir: NodeId, node: NodeId) -> Result<bool, T::Error> {
        self.is_below(dir, node, |entry| entry.remote.as_ref().map(|r| r.node.place.parent))
    }

    fn is_below(
        &self,
        dir: NodeId,
        node: NodeId,
        parent: impl Fn(&Entry) -> Option<NodeId>,
    ) -> Result<bool, T::Error> {
        let mut at = dir;
        for _ in 0..100_000 {
            if at == node {
                return Ok(true);
            }
            if at == NodeId::ROOT {
                return Ok(false);
            }
            match self.trees.look(at, &parent)? {
                Some(next) => at = next,
                None => return Ok(false),
            }
        }
        // Only a cycle is this long; nothing may be moved into it.
        Ok(true)
    }
}

/// Returns where a parked node is, from the folder's root.
fn parked_path(id: NodeId) -> RelPath {
    let path = format!(".picloud/parked/{id}");
    RelPath::parse(path.as_bytes()).unwrap_or_default()
}

/// Returns `stat` with what a link does not have taken out, so that equal links are equal.
fn normal(mut stat: Stat) -> Stat {
    if stat.kind == Some(crate::model::Kind::Link) {
        stat.attrs.mode = 0;
    }
    stat
}
