//! What devices see of a server: joining, commits, the pushed journal, contents, restarts.

#![allow(clippy::unwrap_used, reason = "a test ends where something fails")]

mod server_support;

use picloud::model::*;
use picloud::protocol::message::*;
use server_support::*;

#[tokio::test]
async fn a_file_committed_on_one_device_is_pushed_to_the_other_with_its_bytes() {
    let server = Server::start().await;
    let mut one = server.join("alice", "one").await;
    let mut two = server.join("alice", "two").await;
    assert_eq!(one.drive, two.drive);
    two.subscribe(Rev::ZERO, None).await;
    let first = two.page().await;
    assert!(first.nodes.is_empty() && first.consistent && first.digest.is_some());

    let (id, rev) = one.create("notes.txt", b"hello").await;
    let page = two.page().await;
    assert_eq!((page.from, page.upto, page.head), (Rev(0), rev, rev));
    assert_eq!(page.nodes.len(), 1);
    assert_eq!(page.nodes[0].node, Some(file(NodeId::ROOT, "notes.txt", b"hello")));
    assert_eq!(page.chunks, [chunk(b"hello")]);
    let mut digest = Digest::default();
    digest.add(id, rev, &file(NodeId::ROOT, "notes.txt", b"hello"));
    assert_eq!(page.digest, Some(digest));

    // The other way round, and a deletion.
    let gone = two.commit(vec![delete(id, rev)], vec![]).await;
    assert_eq!(revs(&gone), [2]);
    one.subscribe(Rev(1), Some(one.admitted.drives[0].lineage)).await;
    let page = one.page().await;
    assert_eq!(page.nodes[0].node, None);
    assert_eq!(page.digest, Some(Digest::default()));
}

#[tokio::test]
async fn a_connection_is_not_told_its_own_changes_but_hears_that_it_is_up_to_date() {
    let server = Server::start().await;
    let mut one = server.join("alice", "one").await;
    let mut two = server.join("alice", "two").await;
    one.subscribe(Rev::ZERO, None).await;
    one.page().await;
    let mut told = 0;
    for round in 0..20 {
        // Many commits on the way at once, of both devices.
        let mut pending = Vec::new();
        for index in 0..5 {
            let at = format!("one {round} {index}");
            let commit = Commit {
                drive: one.drive,
                changes: vec![create(one.id(), file(NodeId::ROOT, &at, b"x"))],
                chunks: vec![chunk(b"x")],
                deletions: None,
            };
            pending.push(one.connection.send(&commit).await.unwrap());
        }
        let (other, _) = two.create(&format!("two {round}"), b"y").await;
        let mut last = Rev::ZERO;
        for reply in pending {
            last = last.max(reply.reply().await.unwrap().head);
        }
        let head = last.max(Rev((round + 1) * 6));
        let (nodes, _, page) = one.pages_upto(head).await;
        let ids: Vec<NodeId> = nodes.iter().map(|node| node.id).collect();
        assert_eq!(ids, [other], "round {round}");
        assert!(page.digest.is_some() && page.consistent);
        told += nodes.len();
    }
    assert_eq!(told, 20);
    // Another connection of the same device knows nothing of what this one committed.
    let mut again = one.resume(&server).await.unwrap();
    again.subscribe(Rev::ZERO, None).await;
    let (nodes, chunks, _) = again.pages_upto(Rev(120)).await;
    assert_eq!(nodes.len(), 120);
    assert_eq!(chunks, [chunk(b"y")], "its own contents it has");
}

/// What a device that died had sent may reach the server after the device is back: it must not, or the
/// device takes its own change for somebody else's.
#[tokio::test]
async fn of_a_device_that_came_back_nothing_is_taken_on_its_earlier_connection() {
    let server = Server::start().await;
    let mut one = server.join("alice", "one").await;
    one.subscribe(Rev::ZERO, None).await;
    let (_, rev) = one.create("before", b"x").await;
    let mut again = one.resume(&server).await.unwrap();
    let subscribed = again.subscribe(Rev::ZERO, None).await;
    assert_eq!(subscribed.head, rev);
    let changes = vec![create(one.id(), dir(NodeId::ROOT, "late"))];
    let late = Commit { drive: one.drive, changes, chunks: vec![], deletions: None };
    assert_eq!(code(one.connection.call(&late).await), FailureCode::Unavailable);
    let (nodes, _, _) = again.pages_upto(rev).await;
    assert_eq!(nodes.len(), 1);
    again.create("after", b"x").await;
}

#[tokio::test]
async fn a_long_journal_comes_in_acknowledged_pages_and_ends_consistent() {
    let server = Server::start().await;
    let one = server.join("alice", "one").await;
    let mut two = server.join("alice", "two").await;
    let mut ids = Vec::new();
    for batch in 0..20_u32 {
        let changes: Vec<Change> = (0..500_u32)
            .map(|index| {
                let mut bytes = [7; 16];
                bytes[..4].copy_from_slice(&(batch * 500 + index + 1).to_be_bytes());
                ids.push(NodeId::from_bytes(bytes));
                let at = format!("{batch} {index}");
                create(*ids.last().unwrap(), dir(NodeId::ROOT, &at))
            })
            .collect();
        one.commit(changes, vec![]).await;
    }
    // The first node changes last, so nothing before the end is a tree that ever was.
    one.commit(vec![rename(ids[0], Rev(1), NodeId::ROOT, "last")], vec![]).await;
    two.subscribe(Rev::ZERO, None).await;
    let mut unseen = Vec::new();
    for _ in 0..8 {
        unseen.push(two.unseen_page().await);
    }
    let more = tokio::time::timeout(std::time::Duration::from_millis(300), two.unseen_page());
    assert!(more.await.is_err(), "at most eight pages are on their way");
    assert!(unseen.iter().all(|page| !page.consistent && page.digest.is_none()));
    two.seen(unseen[7].upto).await;
    let (mut nodes, _, last) = two.pages_upto(Rev(10_001)).await;
    assert!(last.consistent && last.digest.is_some());
    let early = unseen.into_iter().flat_map(|page| page.nodes);
    nodes.extend(early);
    assert_eq!(nodes.len(), 10_000, "each node once, in its latest state");
}

#[tokio::test]
async fn a_large_file_travels_as_chunks_and_a_list() {
    let server = Server::start().await;
    let one = server.join("alice", "one").await;
    let mut two = server.join("alice", "two").await;
    let parts: Vec<Vec<u8>> = (0..40_u8).map(|n| vec![n + 1; 100_000]).collect();
    let mut extents: Vec<Extent> =
        parts.iter().map(|part| Extent::Chunk { id: ChunkId::of(part), len: 100_000 }).collect();
    extents.push(Extent::Hole { len: 1 << 30 });
    let list = ContentList::new(extents).unwrap();
    let (encoded, id) = (list.encode(), list.id());
    let drive = one.drive;
    let ids: Vec<ChunkId> = parts.iter().map(|part| ChunkId::of(part)).collect();
    let find = FindMissing { drive, chunks: ids.clone() };
    assert_eq!(one.connection.call(&find).await.unwrap().chunks, ids);

    let put_list = |offset: usize, end: usize, last| PutList {
        drive,
        list: id,
        offset: offset as u64,
        last,
        data: encoded[offset..end].to_vec(),
    };
    // Too early: its chunks are not there.
    let early = one.connection.call(&put_list(0, encoded.len(), true)).await;
    assert_eq!(code(early), FailureCode::NotFound);
    // Everything pipelined, in order, the list in pieces.
    let mut puts = Vec::new();
    for ten in parts.chunks(10) {
        let chunks = ten.iter().map(|part| chunk(part)).collect();
        puts.push(one.connection.send(&PutChunks { drive, chunks }).await.unwrap());
    }
    let mut pieces = Vec::new();
    for (from, to) in [(0, 100), (100, 101), (101, encoded.len())] {
        let piece = put_list(from, to, to == encoded.len());
        pieces.push(one.connection.send(&piece).await.unwrap());
    }
    for piece in pieces {
        piece.reply().await.unwrap();
    }
    for put in puts {
        put.reply().await.unwrap();
    }
    assert!(one.connection.call(&find).await.unwrap().chunks.is_empty());
    let has = HasList { drive, list: id };
    assert!(two.connection.call(&has).await.unwrap().present);

    let mut node = file(NodeId::ROOT, "large", b"?");
    node.body =
        Body::File { content: Content::List { id, len: list.len() }, mtime: Timestamp::default() };
    let mut lying = node.clone();
    lying.body = Body::File {
        content: Content::List { id, len: list.len() + 1 },
        mtime: Timestamp::default(),
    };
    let committed = one
        .commit(vec![create(one.admitted_id(9), lying), create(one.admitted_id(8), node)], vec![])
        .await;
    assert!(matches!(
        committed.results[..],
        [ChangeResult::Refused(Refusal::Illegal { .. }), ChangeResult::Accepted { rev: Rev(1) }]
    ));
    two.subscribe(Rev::ZERO, None).await;
    two.page().await;
    let get = GetList { drive, list: id, offset: 3 };
    let part = two.connection.call(&get).await.unwrap();
    assert_eq!((part.total, part.data), (encoded.len() as u64, encoded[3..].to_vec()));
    // Chunks come as many as fit, and what is not there is named.
    let unknown = ChunkId::of(b"unknown");
    let mut wanted = vec![unknown];
    wanted.extend(&ids);
    let mut got = Vec::new();
    while !wanted.is_empty() {
        let get = GetChunks { drive, chunks: wanted.clone() };
        let reply = two.connection.call(&get).await.unwrap();
        wanted.drain(..reply.chunks.len() + reply.absent.len());
        assert!(reply.absent.iter().all(|id| *id == unknown));
        got.extend(reply.chunks.into_iter().map(|chunk| chunk.data));
    }
    assert_eq!(got, parts);
}

impl Device {
    fn admitted_id(&self, number: u8) -> NodeId {
        let mut bytes = *self.admitted.device.as_bytes();
        bytes[1] = number;
        NodeId::from_bytes(bytes)
    }
}

#[tokio::test]
async fn everything_acknowledged_is_there_after_a_restart_and_asking_again_changes_nothing() {
    let server = Server::start().await;
    let mut one = server.join("alice", "one").await;
    let id = one.id();
    let ask = vec![create(id, file(NodeId::ROOT, "a", b"bytes"))];
    let first = one.commit(ask.clone(), vec![chunk(b"bytes")]).await;
    let lineage = one.admitted.drives[0].lineage;
    let server = server.restart().await;
    assert_eq!(one.ended().await, FailureCode::Unavailable, "it was told why");

    let mut again = one.resume(&server).await.unwrap();
    assert_eq!(again.admitted.drives[0].lineage, lineage);
    let second = again.commit(ask, vec![]).await;
    assert_eq!(revs(&first), revs(&second));
    assert_eq!(second.head, Rev(1));
    again.subscribe(Rev::ZERO, Some(lineage)).await;
    assert_eq!(again.page().await.nodes.len(), 1);
    let get = GetChunks { drive: again.drive, chunks: vec![ChunkId::of(b"bytes")] };
    assert_eq!(again.connection.call(&get).await.unwrap().chunks, [chunk(b"bytes")]);
    // A cursor of another history begins anew.
    let told = again.subscribe(Rev(1), Some(Lineage::from_bytes([9; 16]))).await;
    assert_eq!(told.from, Rev::ZERO);
    let told = again.subscribe(Rev(7), Some(lineage)).await;
    assert_eq!(told.from, Rev::ZERO, "past the head");
}

#[tokio::test]
async fn a_path_can_be_looked_up_and_a_directory_listed_without_a_subscription() {
    let server = Server::start().await;
    let mut one = server.join("alice", "one").await;
    let (docs, note) = (one.id(), one.id());
    let changes =
        vec![create(docs, dir(NodeId::ROOT, "docs")), create(note, file(docs, "note", b"n"))];
    one.commit(changes, vec![chunk(b"n")]).await;
    let lookup =
        |path: &str| Lookup { drive: one.drive, path: RelPath::parse(path.as_bytes()).unwrap() };
    let found = one.connection.call(&lookup("docs/note")).await.unwrap().node;
    assert_eq!(found.unwrap().id, note);
    for absent in ["docs/other", "other/note", "docs/note/deeper"] {
        assert!(one.connection.call(&lookup(absent)).await.unwrap().node.is_none());
    }
    let list = |dir, after| ListDir { drive: one.drive, dir, after };
    let entries = one.connection.call(&list(NodeId::ROOT, None)).await.unwrap();
    assert_eq!(entries.entries.len(), 1);
    let entries = one.connection.call(&list(NodeId::ROOT, Some(name("docs")))).await.unwrap();
    assert!(entries.entries.is_empty() && !entries.more);
    let no_dir = one.connection.call(&list(note, None)).await;
    assert_eq!(code(no_dir), FailureCode::NotFound);
}
