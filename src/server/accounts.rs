//! What makes an account: names, passwords, tokens, one-time codes.
//!
//! Nothing here touches the store or the network. Secrets are compared in constant time, and what is
//! stored of them (an argon2id hash, a BLAKE3 hash) admits nobody.

use argon2::password_hash::phc::PasswordHash;
use argon2::{Algorithm, Argon2, Params, PasswordHasher, PasswordVerifier, Version};
use ring::hmac;
use subtle::ConstantTimeEq;

use super::store::StoreError;
use crate::model;
use crate::protocol::message::FailureCode;

/// The longest password in bytes; hashing time grows with it.
pub const PASSWORD_LEN_MAX: usize = 1024;

/// The shortest password in characters (NIST SP 800-63B).
pub const PASSWORD_LEN_MIN: usize = 8;

/// The longest name of a user or a device in bytes.
pub const NAME_LEN_MAX: usize = 64;

/// The most devices of one user that are not revoked.
pub const DEVICES_MAX: usize = 500;

/// Returns 32 bytes that nobody can guess.
///
/// # Errors
/// When the system has no randomness.
pub fn random<const N: usize>() -> Result<[u8; N], StoreError> {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes)
        .map_err(|error| StoreError::Damaged(format!("the system gives no randomness: {error}")))?;
    Ok(bytes)
}

/// Checks the name of a user: 1 to 64 of `A-Z a-z 0-9 . _ @ -`, not beginning with `-` or `.`.
///
/// # Errors
/// Says what a name may be.
pub fn check_user_name(name: &str) -> Result<(), StoreError> {
    let legal = |byte: u8| byte.is_ascii_alphanumeric() || b"._@-".contains(&byte);
    if (1..=NAME_LEN_MAX).contains(&name.len())
        && name.bytes().all(legal)
        && !name.starts_with(['-', '.'])
    {
        return Ok(());
    }
    Err(StoreError::request(
        FailureCode::Malformed,
        "A user name has 1 to 64 letters, digits or . _ @ - and begins with none of . -",
    ))
}

/// Checks the name of a device.
///
/// # Errors
/// Says what a name may be.
pub fn check_device_name(name: &str) -> Result<(), StoreError> {
    model::check_device_name(name)
        .map_err(|reason| StoreError::request(FailureCode::Malformed, capital(reason)))
}

fn capital(text: &str) -> String {
    let mut chars = text.chars();
    chars.next().map_or_else(String::new, |first| first.to_uppercase().chain(chars).collect())
}

/// Checks a password that is to be set.
///
/// # Errors
/// Says how long it must be.
pub fn check_password(password: &str) -> Result<(), StoreError> {
    if password.chars().count() >= PASSWORD_LEN_MIN && password.len() <= PASSWORD_LEN_MAX {
        return Ok(());
    }
    Err(StoreError::request(
        FailureCode::Malformed,
        format!("A password has {PASSWORD_LEN_MIN} characters to {PASSWORD_LEN_MAX} bytes"),
    ))
}

/// Argon2id as OWASP advises: 19 MiB, two passes, one lane.
fn argon2() -> Argon2<'static> {
    let params = Params::new(19 * 1024, 2, 1, None).unwrap_or_default();
    Argon2::new(Algorithm::Argon2id, Version::V0x13, params)
}

/// Hashes a password for storing. Takes tens of milliseconds and 19 MiB.
///
/// # Errors
/// When it is too long to hash, or there is no memory.
pub fn hash_password(password: &str) -> Result<String, StoreError> {
    argon2()
        .hash_password(password.as_bytes())
        .map(|hash| hash.to_string())
        .map_err(|error| StoreError::Damaged(format!("a password could not be hashed: {error}")))
}

/// Returns whether this is the password of that hash. Takes as long as hashing.
#[must_use]
pub fn verify_password(password: &str, hash: &str) -> bool {
    password.len() <= PASSWORD_LEN_MAX
        && PasswordHash::new(hash)
            .is_ok_and(|hash| argon2().verify_password(password.as_bytes(), &hash).is_ok())
}

/// Returns what is stored of a token or of the secret of an invitation.
#[must_use]
pub fn hash_secret(secret: &[u8]) -> [u8; 32] {
    blake3::derive_key("picloud 2026 stored secret v1", secret)
}

/// Returns whether two hashes are the same, in constant time.
#[must_use]
pub fn same_hash(one: &[u8; 32], other: &[u8; 32]) -> bool {
    one.ct_eq(other).into()
}

/// The seconds of one TOTP step.
const TOTP_STEP_SECS: i64 = 30;

/// Returns the six digits of a step (RFC 6238 with SHA-1, as every authenticator app has it).
fn totp_code(secret: &[u8], step: i64) -> u32 {
    let key = hmac::Key::new(hmac::HMAC_SHA1_FOR_LEGACY_USE_ONLY, secret);
    let tag = hmac::sign(&key, &step.to_be_bytes());
    let tag = tag.as_ref();
    let offset = usize::from(tag[tag.len() - 1] & 0xf);
    let bytes = tag[offset..].first_chunk().copied().unwrap_or_default();
    (u32::from_be_bytes(bytes) & 0x7fff_ffff) % 1_000_000
}

/// Returns the step for which this code is right, one step of clock difference allowed.
#[must_use]
pub fn totp_step(secret: &[u8], code: &str, now_secs: i64) -> Option<i64> {
    let code: String = code.chars().filter(|c| !c.is_whitespace()).collect();
    if code.len() != 6 {
        return None;
    }
    let step = now_secs.div_euclid(TOTP_STEP_SECS);
    // All three are compared, so the time tells nothing.
    [step - 1, step, step + 1].into_iter().fold(None, |found, step| {
        let right = format!("{:06}", totp_code(secret, step));
        if bool::from(right.as_bytes().ct_eq(code.as_bytes())) { Some(step) } else { found }
    })
}

/// Returns the `otpauth` address that an authenticator app takes.
#[must_use]
pub fn totp_uri(user: &str, secret: &[u8]) -> String {
    // A user name needs escaping only for its `@`.
    let user = user.replace('@', "%40");
    format!("otpauth://totp/PiCloud:{user}?secret={}&issuer=PiCloud", base32(secret))
}

/// RFC 4648 without padding.
fn base32(bytes: &[u8]) -> String {
    const ALPHABET: &[u8; 32] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZ234567";
    bytes
        .chunks(5)
        .flat_map(|group| {
            let mut padded = [0; 8];
            padded[3..3 + group.len()].copy_from_slice(group);
            let bits = u64::from_be_bytes(padded);
            let count = (group.len() * 8).div_ceil(5);
            (0..count).map(move |index| {
                let five = (bits >> (35 - 5 * index)) & 31;
                char::from(ALPHABET[usize::try_from(five).unwrap_or(0)])
            })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_those_of_the_standard() {
        // RFC 6238, appendix B: the last six of the eight digits for SHA-1.
        let secret = b"12345678901234567890";
        for (secs, code) in [(59, "287082"), (1_111_111_109, "081804"), (2_000_000_000, "279037")] {
            assert_eq!(totp_step(secret, code, secs), Some(secs / 30));
            assert_eq!(totp_step(secret, code, secs + 30), Some(secs / 30), "a slow clock");
            assert_eq!(totp_step(secret, code, secs + 60), None);
        }
        assert_eq!(totp_step(secret, "287 082", 59), Some(1));
        assert_eq!(totp_step(secret, "87082", 59), None);
    }

    #[test]
    fn an_authenticator_gets_the_secret_in_base32() {
        // RFC 4648, section 10.
        for (plain, text) in [("f", "MY"), ("foob", "MZXW6YQ"), ("foobar", "MZXW6YTBOI")] {
            assert_eq!(base32(plain.as_bytes()), text);
        }
        assert_eq!(
            totp_uri("a@b", b"foobar"),
            "otpauth://totp/PiCloud:a%40b?secret=MZXW6YTBOI&issuer=PiCloud"
        );
    }

    #[test]
    fn a_password_is_known_by_its_hash_only() {
        let hash = hash_password("correct horse").unwrap();
        assert!(hash.starts_with("$argon2id$v=19$m=19456,t=2,p=1$"), "{hash}");
        assert!(verify_password("correct horse", &hash));
        assert!(!verify_password("correct horsf", &hash));
        assert!(!verify_password("correct horse", "no hash"));
        assert!(!verify_password(&"x".repeat(PASSWORD_LEN_MAX + 1), &hash));
        assert!(check_password("1234567").is_err() && check_password("12345678").is_ok());
    }

    #[test]
    fn names_are_checked() {
        for good in ["a", "Alice.B_2@home-1", &"x".repeat(64)] {
            assert!(check_user_name(good).is_ok(), "{good}");
        }
        for bad in ["", "a b", "é", "-a", "..", "a/b", "a\n", &"x".repeat(65)] {
            assert!(check_user_name(bad).is_err(), "{bad}");
        }
        for bad in ["", "a/b", "a\nb", " a", &"x".repeat(65)] {
            assert!(check_device_name(bad).is_err(), "{bad}");
        }
        assert!(check_device_name("Zoë's laptop").is_ok());
    }
}
