//! What a person wants to know of a certificate: until when it is valid, and for which names.
//!
//! rustls checks both but does not tell the dates, so they are read here, from DER, and nothing else is:
//! a full reader of X.509 would be ten more crates. What cannot be read has no dates; nothing is trusted
//! by them.

use rustls::pki_types::{CertificateDer, ServerName};

/// Seconds since the Unix epoch between which a certificate is valid.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Validity {
    /// From.
    pub from: i64,
    /// Until.
    pub until: i64,
}

const SEQUENCE: u8 = 0x30;
const INTEGER: u8 = 0x02;
const VERSION: u8 = 0xa0;
const UTC_TIME: u8 = 0x17;
const GENERALIZED_TIME: u8 = 0x18;

/// Splits the first element off some DER: its tag, its content, and what follows.
fn element(bytes: &[u8]) -> Option<(u8, &[u8], &[u8])> {
    let (&[tag, first], rest) = bytes.split_first_chunk()?;
    let (len, rest) = match first {
        0..=0x7f => (usize::from(first), rest),
        0x81..=0x84 => {
            let (len, rest) = rest.split_at_checked(usize::from(first & 0x7f))?;
            (len.iter().fold(0, |len, byte| len << 8 | usize::from(*byte)), rest)
        }
        _ => return None,
    };
    let (content, rest) = rest.split_at_checked(len)?;
    Some((tag, content, rest))
}

fn content_of(tag: u8, bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    element(bytes).filter(|found| found.0 == tag).map(|(_, content, rest)| (content, rest))
}

/// Reads `YYMMDDHHMMSSZ` or `YYYYMMDDHHMMSSZ`, the only forms that certificates may have.
fn time(tag: u8, text: &[u8]) -> Option<i64> {
    let text = std::str::from_utf8(text).ok()?.strip_suffix('Z')?;
    if !text.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let text = match (tag, text.len()) {
        // RFC 5280: a year below 50 is of this century.
        (UTC_TIME, 12) => format!("{}{text}", if text < "5" { "20" } else { "19" }),
        (GENERALIZED_TIME, 14) => text.to_owned(),
        _ => return None,
    };
    let number = |from: usize, to: usize| text[from..to].parse::<i8>().ok();
    let year = text[..4].parse().ok()?;
    let moment = jiff::civil::DateTime::new(
        year,
        number(4, 6)?,
        number(6, 8)?,
        number(8, 10)?,
        number(10, 12)?,
        number(12, 14)?,
        0,
    );
    let zoned = moment.ok()?.to_zoned(jiff::tz::TimeZone::UTC).ok()?;
    Some(zoned.timestamp().as_second())
}

/// Returns between which moments a certificate is valid, if it can be read.
#[must_use]
pub fn validity(certificate: &[u8]) -> Option<Validity> {
    let (certificate, _) = content_of(SEQUENCE, certificate)?;
    let (signed, _) = content_of(SEQUENCE, certificate)?;
    // Version (left out by the first), serial number, algorithm, issuer, then the dates.
    let rest = content_of(VERSION, signed).map_or(signed, |(_, rest)| rest);
    let (_, rest) = content_of(INTEGER, rest)?;
    let (_, rest) = content_of(SEQUENCE, rest)?;
    let (_, rest) = content_of(SEQUENCE, rest)?;
    let (dates, _) = content_of(SEQUENCE, rest)?;
    let (from_tag, from, rest) = element(dates)?;
    let (until_tag, until, _) = element(rest)?;
    Some(Validity { from: time(from_tag, from)?, until: time(until_tag, until)? })
}

/// Returns whether a certificate is for a host name or address.
#[must_use]
pub fn is_for(certificate: &CertificateDer<'_>, host: &str) -> bool {
    let (Ok(parsed), Ok(name)) =
        (rustls::server::ParsedCertificate::try_from(certificate), ServerName::try_from(host))
    else {
        return false;
    };
    rustls::client::verify_server_name(&parsed, &name).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn certificate(from: (i32, u8, u8), until: (i32, u8, u8)) -> CertificateDer<'static> {
        let key = rcgen::KeyPair::generate().unwrap();
        let names = vec!["box.example".to_owned(), "192.0.2.7".to_owned()];
        let mut params = rcgen::CertificateParams::new(names).unwrap();
        params.not_before = rcgen::date_time_ymd(from.0, from.1, from.2);
        params.not_after = rcgen::date_time_ymd(until.0, until.1, until.2);
        params.self_signed(&key).unwrap().der().clone()
    }

    #[test]
    fn dates_are_read_in_both_forms_and_no_cut_or_changed_byte_makes_trouble() {
        let whole = certificate((1999, 12, 31), (2050, 1, 2));
        let expected = Validity { from: 946_598_400, until: 2_524_694_400 };
        assert_eq!(validity(&whole), Some(expected));
        let near = certificate((2026, 1, 1), (2049, 12, 31));
        assert_eq!(validity(&near).unwrap().until, 2_524_521_600);
        for end in 0..whole.len() {
            assert_eq!(validity(&whole[..end]), None, "cut after {end} bytes");
            let mut changed = whole.to_vec();
            changed[end] ^= 0x85;
            // Whatever it answers, it does not panic.
            _ = validity(&changed);
        }
    }

    #[test]
    fn the_names_are_those_that_rustls_accepts() {
        let certificate = certificate((2020, 1, 1), (2040, 1, 1));
        assert!(is_for(&certificate, "box.example") && is_for(&certificate, "192.0.2.7"));
        for other in ["example", "a.box.example", "192.0.2.8", "not a name"] {
            assert!(!is_for(&certificate, other), "{other}");
        }
    }
}
