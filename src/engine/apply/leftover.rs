//! The names of what lies below `.picloud`: they say what may be dropped after a crash.

use std::fmt;

use super::OWN_DIR;
use crate::model::{ChunkId, Content, ListId, Name, NodeId, RelPath};

/// What some bytes are, in the name of a leftover.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Token {
    /// Nothing: a removal brings no new content.
    Nothing,
    /// Nothing that may be dropped: the old version is to be kept, or is not known.
    Keep,
    Empty,
    Chunk(ChunkId),
    List(ListId),
    /// The BLAKE3 hash of a link's target.
    Target(ChunkId),
}

impl Token {
    pub(super) const fn of_content(content: &Content) -> Self {
        match content {
            Content::Empty => Self::Empty,
            Content::Chunk { id, .. } => Self::Chunk(*id),
            Content::List { id, .. } => Self::List(*id),
        }
    }

    pub(super) fn parse(text: &str) -> Option<Self> {
        let (kind, hex) = text.split_at_checked(1)?;
        match (kind, hex.is_empty()) {
            ("n", true) => Some(Self::Nothing),
            ("k", true) => Some(Self::Keep),
            ("e", true) => Some(Self::Empty),
            ("c", false) => ChunkId::from_hex(hex).ok().map(Self::Chunk),
            ("l", false) => ListId::from_hex(hex).ok().map(Self::List),
            ("t", false) => ChunkId::from_hex(hex).ok().map(Self::Target),
            _ => None,
        }
    }
}

impl fmt::Display for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Nothing => f.write_str("n"),
            Self::Keep => f.write_str("k"),
            Self::Empty => f.write_str("e"),
            Self::Chunk(id) => write!(f, "c{id}"),
            Self::List(id) => write!(f, "l{id}"),
            Self::Target(id) => write!(f, "t{id}"),
        }
    }
}

/// An entry of the trash, as its name tells:
/// `BATCH-INDEX.NODE.NEW.OLD`, at most 8 + 1 + 8 + 1 + 32 + 2 * 66 = 182 bytes of lower case.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Leftover {
    pub(super) batch: u32,
    pub(super) index: u32,
    pub(super) node: NodeId,
    pub(super) new: Token,
    pub(super) old: Token,
}

impl Leftover {
    pub(super) fn parse(name: &Name) -> Option<Self> {
        let text = std::str::from_utf8(name.as_bytes()).ok()?;
        let mut parts = text.split('.');
        let (batch, index) = parts.next()?.split_once('-')?;
        let leftover = Self {
            batch: u32::from_str_radix(batch, 16).ok()?,
            index: u32::from_str_radix(index, 16).ok()?,
            node: NodeId::from_hex(parts.next()?).ok()?,
            new: Token::parse(parts.next()?)?,
            old: Token::parse(parts.next()?)?,
        };
        parts.next().is_none().then_some(leftover)
    }

    pub(super) fn name(&self) -> Name {
        ascii_name(format!(
            "{:x}-{:x}.{}.{}.{}",
            self.batch, self.index, self.node, self.new, self.old
        ))
    }

    /// Returns whether bytes like these may be dropped: either they came from the server and can
    /// come again, or whoever replaced them had seen them.
    pub(super) fn may_drop(&self, token: Option<Token>) -> bool {
        token.is_some_and(|token| token == self.new || token == self.old)
    }
}

/// Wraps a name that this module made of ASCII letters, digits, dots and dashes.
pub(super) fn ascii_name(text: String) -> Name {
    Name::new(text).unwrap_or_else(|error| unreachable!("a name of our own making: {error}"))
}

pub(super) fn note_name(batch: u32) -> Name {
    ascii_name(format!("{batch:x}.where"))
}

pub(super) fn parked_note_name(node: NodeId) -> Name {
    ascii_name(format!("{node}.where"))
}

pub(super) fn parked_name(node: NodeId) -> Name {
    ascii_name(node.to_string())
}

/// Returns a path below `.picloud`, for people.
pub(super) fn own_path(own: &str, name: &Name) -> RelPath {
    RelPath::parse(OWN_DIR).unwrap_or_default().join(&ascii_name(own.into())).join(name)
}

pub(super) fn parse_node(bytes: &[u8]) -> Option<NodeId> {
    NodeId::from_hex(std::str::from_utf8(bytes).ok()?).ok()
}

pub(super) fn note_batch(name: &Name) -> Option<u32> {
    let text = std::str::from_utf8(name.as_bytes()).ok()?;
    u32::from_str_radix(text.strip_suffix(".where")?, 16).ok()
}

/// Appends `INDEX PATH NUL`.
pub(super) fn push_note(note: &mut Vec<u8>, index: usize, path: &RelPath) {
    note.extend_from_slice(format!("{index:x} ").as_bytes());
    note.extend_from_slice(&path.to_bytes());
    note.push(0);
}

/// Reads a note as far as it is legible: after a power cut its end may be missing.
pub(super) fn parse_note(note: &[u8]) -> Vec<(u32, RelPath)> {
    let complete = note.iter().rposition(|byte| *byte == 0).unwrap_or(0);
    note[..complete]
        .split(|byte| *byte == 0)
        .filter_map(|line| {
            let space = line.iter().position(|byte| *byte == b' ')?;
            let index = u32::from_str_radix(std::str::from_utf8(&line[..space]).ok()?, 16).ok()?;
            let path = RelPath::parse(&line[space + 1..]).ok()?;
            (!path.is_root()).then_some((index, path))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_leftover_survives_its_name_and_a_note_its_cut() {
        let id = ChunkId::of(b"x");
        let list = ListId::from_bytes([9; 32]);
        for (new, old) in [
            (Token::Chunk(id), Token::List(list)),
            (Token::Nothing, Token::Empty),
            (Token::Target(id), Token::Keep),
        ] {
            let node = NodeId::from_bytes([3; 16]);
            let leftover = Leftover { batch: u32::MAX, index: u32::MAX, node, new, old };
            let name = leftover.name();
            assert!(name.as_bytes().len() <= 182);
            assert_eq!(Leftover::parse(&name), Some(leftover));
        }
        for bad in ["", "x", "1-1.x.n.n", "w1.part", "1.where"] {
            assert_eq!(Name::try_from(bad).ok().and_then(|name| Leftover::parse(&name)), None);
        }
        let mut note = Vec::new();
        let path = |path: &str| RelPath::parse(path.as_bytes()).unwrap();
        push_note(&mut note, 10, &path("a b/c\n"));
        push_note(&mut note, 11, &path("d"));
        assert_eq!(parse_note(&note), [(10, path("a b/c\n")), (11, path("d"))]);
        note.pop();
        assert_eq!(parse_note(&note), [(10, path("a b/c\n"))]);
    }
}
