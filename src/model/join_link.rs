//! The one-line link that joins a device: `picloud://HOST:PORT/#FINGERPRINT.SECRET`.

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::{Deserialize, Serialize};

/// The SHA-256 of a server certificate's DER bytes, as `openssl x509 -fingerprint -sha256` prints
/// it. Written as URL-safe base64 without padding.
#[derive(Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Fingerprint(pub [u8; 32]);

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&URL_SAFE_NO_PAD.encode(self.0))
    }
}

impl fmt::Debug for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Fingerprint({self})")
    }
}

impl From<Fingerprint> for String {
    fn from(fingerprint: Fingerprint) -> Self {
        fingerprint.to_string()
    }
}

impl TryFrom<String> for Fingerprint {
    type Error = JoinLinkError;

    fn try_from(text: String) -> Result<Self, JoinLinkError> {
        decode32(&text).map(Self).ok_or(JoinLinkError::Fingerprint)
    }
}

/// Why a text is not a join link.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum JoinLinkError {
    /// It does not begin with `picloud://`.
    #[error("A join link begins with \"picloud://\"")]
    Scheme,
    /// It has no `HOST:PORT`.
    #[error("The join link names no HOST:PORT")]
    Address,
    /// The fingerprint is missing or damaged.
    #[error("The server fingerprint is missing or damaged: copy the whole link")]
    Fingerprint,
    /// The secret is missing or damaged.
    #[error("The join secret is missing or damaged: copy the whole link")]
    Secret,
}

/// A parsed join link.
#[derive(Clone, PartialEq, Eq)]
pub struct JoinLink {
    /// Where the server listens: `HOST:PORT`, an IPv6 address in brackets.
    pub address: String,
    /// The certificate the server must show.
    pub fingerprint: Fingerprint,
    /// The one-time secret.
    pub secret: [u8; 32],
}

impl JoinLink {
    const SCHEME: &'static str = "picloud://";

    /// Parses a link.
    ///
    /// # Errors
    /// Says which part is missing or damaged.
    pub fn parse(text: &str) -> Result<Self, JoinLinkError> {
        let rest = text.trim().strip_prefix(Self::SCHEME).ok_or(JoinLinkError::Scheme)?;
        let (address, fragment) = rest.split_once("/#").ok_or(JoinLinkError::Fingerprint)?;
        let (host, port) = address.rsplit_once(':').ok_or(JoinLinkError::Address)?;
        let host_is_legal = !host.is_empty()
            && host.len() <= 255
            && host.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'/');
        if !host_is_legal || port.parse::<u16>().is_err() {
            return Err(JoinLinkError::Address);
        }
        let (fingerprint, secret) = fragment.split_once('.').ok_or(JoinLinkError::Secret)?;
        Ok(Self {
            address: address.to_owned(),
            fingerprint: decode32(fingerprint)
                .map(Fingerprint)
                .ok_or(JoinLinkError::Fingerprint)?,
            secret: decode32(secret).ok_or(JoinLinkError::Secret)?,
        })
    }
}

impl fmt::Display for JoinLink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let secret = URL_SAFE_NO_PAD.encode(self.secret);
        write!(f, "{}{}/#{}.{secret}", Self::SCHEME, self.address, self.fingerprint)
    }
}

/// Leaves the secret out, so that a link in a log joins nobody.
impl fmt::Debug for JoinLink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("JoinLink")
            .field("address", &self.address)
            .field("fingerprint", &self.fingerprint)
            .finish_non_exhaustive()
    }
}

fn decode32(text: &str) -> Option<[u8; 32]> {
    if text.len() != 43 {
        return None;
    }
    URL_SAFE_NO_PAD.decode(text).ok()?.try_into().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_link_survives_its_text_and_no_shortened_one_is_taken() {
        let link = JoinLink {
            address: "[::1]:46000".into(),
            fingerprint: Fingerprint([1; 32]),
            secret: [2; 32],
        };
        let text = link.to_string();
        assert_eq!(JoinLink::parse(&text), Ok(link.clone()));
        for cut in 0..text.len() {
            assert!(JoinLink::parse(&text[..cut]).is_err(), "{}", &text[..cut]);
        }
        assert!(!format!("{link:?}").contains(&text[text.len() - 20..]));
    }
}
