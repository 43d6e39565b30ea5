//! Names and relative paths: the security boundary between a peer's words and our disk.

use std::fmt;

use serde::de::{self, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use smallvec::SmallVec;

/// Names of up to so many bytes, nearly all there are, lie in a [`Name`] itself: names are cloned with
/// every entry of the trees, and would each be an allocation.
const INLINE_LEN: usize = 23;

/// Why some bytes cannot be a name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// The name has no bytes.
    #[error("A name must not be empty")]
    Empty,
    /// The name is longer than any Unix file system can hold.
    #[error("A name of {len} bytes is over the limit of {}", Name::MAX_LEN)]
    TooLong {
        /// The length found, in bytes.
        len: usize,
    },
    /// The name is `.` or `..`.
    #[error("{name:?} is not a name of its own")]
    Dots {
        /// The name found.
        name: String,
    },
    /// The name contains `/` or NUL.
    #[error("The name {name:?} contains a slash or a NUL byte")]
    Separator {
        /// The name found, with what is not UTF-8 replaced.
        name: String,
    },
}

/// One component of a path: 1 to 255 bytes without `/` and NUL, not `.` or `..`.
///
/// Nearly always UTF-8, but any name a Unix file can have is carried as it is, never normalised.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Name(SmallVec<[u8; INLINE_LEN]>);

impl Name {
    /// The longest name in bytes: `NAME_MAX` of Linux.
    pub const MAX_LEN: usize = 255;

    /// Checks and wraps a name.
    ///
    /// # Errors
    /// When the bytes cannot name an entry of a directory.
    pub fn new(bytes: impl AsRef<[u8]>) -> Result<Self, NameError> {
        let bytes = bytes.as_ref();
        let text = || String::from_utf8_lossy(bytes).into_owned();
        match bytes {
            [] => Err(NameError::Empty),
            long if long.len() > Self::MAX_LEN => Err(NameError::TooLong { len: long.len() }),
            b"." | b".." => Err(NameError::Dots { name: text() }),
            name if name.contains(&b'/') || name.contains(&0) => {
                Err(NameError::Separator { name: text() })
            }
            name => Ok(Self(SmallVec::from_slice(name))),
        }
    }

    /// Returns the bytes of the name.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        String::from_utf8_lossy(&self.0).fmt(f)
    }
}

impl fmt::Debug for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&String::from_utf8_lossy(&self.0), f)
    }
}

impl TryFrom<&str> for Name {
    type Error = NameError;

    fn try_from(text: &str) -> Result<Self, NameError> {
        Self::new(text.as_bytes())
    }
}

impl Serialize for Name {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serde_bytes::Bytes::new(&self.0).serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Name {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_bytes(NameVisitor)
    }
}

/// Takes the bytes of a name from where the deserializer has them.
struct NameVisitor;

impl<'de> Visitor<'de> for NameVisitor {
    type Value = Name;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the bytes of a name")
    }

    fn visit_bytes<E: de::Error>(self, bytes: &[u8]) -> Result<Name, E> {
        Name::new(bytes).map_err(E::custom)
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<Name, E> {
        self.visit_bytes(text.as_bytes())
    }

    fn visit_seq<A: de::SeqAccess<'de>>(self, mut bytes: A) -> Result<Name, A::Error> {
        let mut name = SmallVec::<[u8; INLINE_LEN]>::new();
        while let Some(byte) = bytes.next_element()? {
            // One more than fits tells that it is too long.
            if name.len() <= Name::MAX_LEN {
                name.push(byte);
            }
        }
        self.visit_bytes(&name)
    }
}

/// A path below a folder's or drive's root: zero or more names. Empty is the root itself.
#[derive(Clone, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RelPath(Vec<Name>);

impl RelPath {
    /// The root: no names at all.
    pub const ROOT: Self = Self(Vec::new());

    /// Wraps the names from the root downwards.
    #[must_use]
    pub const fn from_names(names: Vec<Name>) -> Self {
        Self(names)
    }

    /// Parses bytes with `/` between names; leading, trailing and doubled slashes are ignored.
    ///
    /// # Errors
    /// When a component is no legal name (`..`, say, or one too long).
    pub fn parse(bytes: &[u8]) -> Result<Self, NameError> {
        bytes
            .split(|&byte| byte == b'/')
            .filter(|part| !part.is_empty())
            .map(Name::new)
            .collect::<Result<_, _>>()
            .map(Self)
    }

    /// Returns the names from the root downwards.
    #[must_use]
    pub fn names(&self) -> &[Name] {
        &self.0
    }

    /// Returns whether this is the root.
    #[must_use]
    pub fn is_root(&self) -> bool {
        self.0.is_empty()
    }

    /// Returns this path with one more name.
    #[must_use]
    pub fn join(&self, name: &Name) -> Self {
        let mut names = self.0.clone();
        names.push(name.clone());
        Self(names)
    }

    /// Returns the parent and the last name, or nothing for the root.
    #[must_use]
    pub fn split_last(&self) -> Option<(Self, &Name)> {
        self.0.split_last().map(|(last, parent)| (Self(parent.to_vec()), last))
    }

    /// Returns the names with `/` between them, no slash in front; empty for the root.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        self.0.iter().map(Name::as_bytes).collect::<Vec<_>>().join(&b'/')
    }
}

impl fmt::Display for RelPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        String::from_utf8_lossy(&self.to_bytes()).fmt(f)
    }
}

impl fmt::Debug for RelPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&String::from_utf8_lossy(&self.to_bytes()), f)
    }
}

impl Serialize for RelPath {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serde_bytes::Bytes::new(&self.to_bytes()).serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for RelPath {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let bytes = serde_bytes::ByteBuf::deserialize(deserializer)?;
        Self::parse(&bytes).map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_refused_in_the_constructor_and_on_the_wire() {
        for bad in [&b""[..], b".", b"..", b"a/b", b"a\0b", &[b'x'; 256]] {
            assert!(Name::new(bad).is_err(), "{bad:?}");
            let wire = rmp_serde::to_vec(serde_bytes::Bytes::new(bad)).unwrap();
            assert!(rmp_serde::from_slice::<Name>(&wire).is_err(), "{bad:?}");
        }
        for good in [&b"a"[..], b"...", b"\xff\xfe", b"new\nline", &[b'x'; 255]] {
            let name = Name::new(good).unwrap();
            let wire = rmp_serde::to_vec(&name).unwrap();
            assert_eq!(rmp_serde::from_slice::<Name>(&wire).unwrap(), name);
        }
    }

    #[test]
    fn a_path_cannot_climb() {
        assert!(RelPath::parse(b"a/../b").is_err());
        assert_eq!(RelPath::parse(b"/a//b/").unwrap().to_bytes(), b"a/b");
        assert!(RelPath::parse(b"").unwrap().is_root());
    }
}
