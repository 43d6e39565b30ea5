//! Identifiers. All are opaque bytes; only their origin differs, so each has its own type.

use std::fmt;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// An identifier was not the number of bytes or hexadecimal digits its type has.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{kind} {found:?} is not {expected} hexadecimal digits")]
pub struct IdError {
    kind: &'static str,
    expected: usize,
    found: String,
}

fn parse_hex<const N: usize>(kind: &'static str, text: &str) -> Result<[u8; N], IdError> {
    let fail = || IdError { kind, expected: 2 * N, found: text.chars().take(80).collect() };
    let digits = text.as_bytes();
    if digits.len() != 2 * N {
        return Err(fail());
    }
    let mut bytes = [0; N];
    for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
        let high = char::from(pair[0]).to_digit(16).ok_or_else(fail)?;
        let low = char::from(pair[1]).to_digit(16).ok_or_else(fail)?;
        *byte = u8::try_from(high * 16 + low).map_err(|_| fail())?;
    }
    Ok(bytes)
}

macro_rules! id {
    ($(#[$doc:meta])* $name:ident, $len:literal, $kind:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name([u8; $len]);

        impl $name {
            /// The length of this id in bytes.
            pub const LEN: usize = $len;

            /// Wraps bytes that are already such an id.
            #[must_use]
            pub const fn from_bytes(bytes: [u8; $len]) -> Self {
                Self(bytes)
            }

            /// Returns the bytes of this id.
            #[must_use]
            pub const fn as_bytes(&self) -> &[u8; $len] {
                &self.0
            }

            /// Parses the hexadecimal form that `Display` writes.
            ///
            /// # Errors
            /// When `text` is not exactly the right number of hexadecimal digits.
            pub fn from_hex(text: &str) -> Result<Self, IdError> {
                parse_hex($kind, text).map(Self)
            }
        }

        impl TryFrom<&[u8]> for $name {
            type Error = IdError;

            fn try_from(bytes: &[u8]) -> Result<Self, IdError> {
                bytes.try_into().map(Self).map_err(|_| IdError {
                    kind: $kind,
                    expected: 2 * $len,
                    found: format!("{} bytes", bytes.len()),
                })
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}({self})", stringify!($name))
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                if serializer.is_human_readable() {
                    serializer.collect_str(self)
                } else {
                    serde_bytes::Bytes::new(&self.0).serialize(serializer)
                }
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                if deserializer.is_human_readable() {
                    let text = String::deserialize(deserializer)?;
                    Self::from_hex(&text).map_err(serde::de::Error::custom)
                } else {
                    let bytes = serde_bytes::ByteArray::<$len>::deserialize(deserializer)?;
                    Ok(Self(bytes.into_array()))
                }
            }
        }
    };
}

id!(
    /// A file, directory or symlink of a drive; made by the device that creates it, never reused.
    NodeId, 16, "node id"
);
id!(
    /// A drive: one tree of files that syncs as one.
    DriveId, 16, "drive id"
);
id!(
    /// An account on a server.
    UserId, 16, "user id"
);
id!(
    /// One agent of one user.
    DeviceId, 16, "device id"
);
id!(
    /// One synced folder on one device; lies in its `.picloud/identity`.
    FolderId, 16, "folder id"
);
id!(
    /// One unbroken history of a drive; a server restored from an older backup begins a new one.
    Lineage, 16, "lineage"
);
id!(
    /// A chunk: the BLAKE3 hash of its plain bytes.
    ChunkId, 32, "chunk id"
);
id!(
    /// A content list: the BLAKE3 hash, under a key of its own, of its canonical encoding.
    ListId, 32, "content list id"
);

impl NodeId {
    /// The root directory of every drive: it always exists, and is never moved or deleted.
    pub const ROOT: Self = Self([0; 16]);
}

impl ChunkId {
    /// Returns the id of the chunk with these plain bytes.
    #[must_use]
    pub fn of(plain: &[u8]) -> Self {
        Self(*blake3::hash(plain).as_bytes())
    }
}

/// A drive's journal sequence number. 0 is before the first change.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(transparent)]
pub struct Rev(pub u64);

impl Rev {
    /// The rev of a drive nobody has changed yet, and the cursor of a device that knows nothing.
    pub const ZERO: Self = Self(0);

    /// The largest that is ever read from a peer or a disk: what both databases can hold. No drive
    /// gets there, and there is always a next one.
    pub const MAX: Self = Self(i64::MAX as u64);

    /// Returns the rev that follows this one.
    #[must_use]
    pub const fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

impl<'de> Deserialize<'de> for Rev {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let rev = Self(u64::deserialize(deserializer)?);
        if rev <= Self::MAX { Ok(rev) } else { Err(serde::de::Error::custom("a rev out of range")) }
    }
}

impl fmt::Display for Rev {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Makes fresh node ids: 48 bits of milliseconds, then 80 bits of the seeded generator.
///
/// The layout follows UUID version 7 (RFC 9562, section 5.7) in that ids made one after the other
/// sort one after the other, which keeps rows of one upload next to each other in both databases.
/// The seed comes from outside, so a simulation is repeatable and a device is not predictable.
#[derive(Debug, Clone)]
pub struct IdSource {
    key: [u8; 32],
    counter: u64,
}

impl IdSource {
    /// Returns a source whose ids are a function of `seed` and of the times asked with.
    #[must_use]
    pub const fn new(seed: [u8; 32]) -> Self {
        Self { key: seed, counter: 0 }
    }

    /// Returns an id that this source has not returned before.
    pub fn node_id(&mut self, now_ms: u64) -> NodeId {
        self.counter += 1;
        let hash = blake3::keyed_hash(&self.key, &self.counter.to_be_bytes());
        let mut bytes = [0; 16];
        bytes[..6].copy_from_slice(&now_ms.to_be_bytes()[2..]);
        bytes[6..].copy_from_slice(&hash.as_bytes()[..10]);
        NodeId(bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_survives_its_text_and_its_bytes() {
        let id = ChunkId::of(b"abc");
        assert_eq!(ChunkId::from_hex(&id.to_string()), Ok(id));
        let wire = rmp_serde::to_vec_named(&id).unwrap();
        assert_eq!(wire.len(), 34, "bin8 header and 32 bytes");
        assert_eq!(rmp_serde::from_slice::<ChunkId>(&wire).unwrap(), id);
        assert!(NodeId::from_hex("00").is_err());
        assert!(NodeId::from_hex(&"g".repeat(32)).is_err());
    }

    #[test]
    fn a_rev_that_no_database_can_hold_is_none() {
        for (rev, is_one) in [(Rev::MAX, true), (Rev::MAX.next(), false), (Rev(u64::MAX), false)] {
            let wire = rmp_serde::to_vec_named(&rev).unwrap();
            assert_eq!(rmp_serde::from_slice::<Rev>(&wire).is_ok(), is_one, "{rev}");
        }
    }

    #[test]
    fn ids_of_one_source_differ_and_sort_by_time() {
        let mut source = IdSource::new([7; 32]);
        let first = source.node_id(5);
        let second = source.node_id(5);
        let later = source.node_id(6);
        assert_ne!(first, second);
        assert!(later > first && later > second);
    }
}
