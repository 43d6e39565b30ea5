//! TLS 1.3: the server's certificate, and how a device knows it is the right one.
//!
//! The cryptography provider is always named, never rustls' process-wide default: another crate in
//! the program could otherwise leave it ambiguous. Sessions are not resumed, so every connection
//! proves the server's key anew.

use std::fmt;
use std::io;
use std::sync::Arc;

use rustls::client::Resumption;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::NoServerSessionStorage;
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, OtherError, ServerConfig,
    SignatureScheme,
};
use tokio_rustls::{TlsAcceptor, TlsConnector};

use super::certificate::{self, Validity};
use crate::model::Fingerprint;

/// The ALPN name of this protocol.
pub const ALPN: &[u8] = b"picloud/1";

/// How a device knows that it speaks to the right server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trust {
    /// By the certificate itself, as the join link names it; its names and dates do not matter.
    Pinned(Fingerprint),
    /// By a public authority that this machine trusts.
    PublicAuthority,
}

/// Why TLS cannot be set up on this side.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// The certificate file has none, or damaged ones.
    #[error("The server certificate is not PEM: {0}")]
    Certificate(String),
    /// The key file has none, or a damaged one.
    #[error("The server key is not PEM: {0}")]
    Key(String),
    /// A certificate could not be made.
    #[error("Cannot make a server certificate")]
    Generate(#[from] rcgen::Error),
    /// rustls refused: a key that does not belong to its certificate, no trusted authorities.
    #[error("Cannot set up TLS")]
    Rustls(#[from] rustls::Error),
}

/// The server showed another certificate than the pinned one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("expected certificate {expected}, found {found}")]
pub struct WrongFingerprint {
    /// The pinned one.
    pub expected: Fingerprint,
    /// The one shown.
    pub found: Fingerprint,
}

impl WrongFingerprint {
    /// Finds this error at the bottom of what a TLS handshake failed with.
    pub(super) fn find_in(error: &io::Error) -> Option<Self> {
        let tls = error.get_ref()?.downcast_ref::<rustls::Error>()?;
        match tls {
            rustls::Error::InvalidCertificate(CertificateError::Other(OtherError(inner))) => {
                inner.downcast_ref::<Self>().copied()
            }
            _ => None,
        }
    }
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

fn fingerprint_of(certificate: &CertificateDer<'_>) -> Fingerprint {
    let hash = ring::digest::digest(&ring::digest::SHA256, certificate);
    let mut bytes = [0; 32];
    bytes.copy_from_slice(hash.as_ref());
    Fingerprint(bytes)
}

/// Makes a self-signed certificate for these host names and addresses, and returns it and its
/// private key as PEM.
///
/// # Errors
/// When a name cannot be in a certificate.
pub fn generate_certificate(names: &[String]) -> Result<(String, String), TlsError> {
    let key = rcgen::KeyPair::generate()?;
    let mut params = rcgen::CertificateParams::new(names.to_vec())?;
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(rcgen::DnType::CommonName, "PiCloud server");
    let certificate = params.self_signed(&key)?;
    Ok((certificate.pem(), key.serialize_pem()))
}

/// The server's certificate chain and private key.
pub struct ServerIdentity {
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
    fingerprint: Fingerprint,
}

impl ServerIdentity {
    /// Reads a certificate chain (the server's own first) and its key from PEM.
    ///
    /// # Errors
    /// When either has no legal PEM block of its kind.
    pub fn from_pem(certificates: &str, key: &str) -> Result<Self, TlsError> {
        let chain: Vec<_> = CertificateDer::pem_slice_iter(certificates.as_bytes())
            .collect::<Result<_, _>>()
            .map_err(|error| TlsError::Certificate(error.to_string()))?;
        let own = chain
            .first()
            .ok_or_else(|| TlsError::Certificate("it has no certificate".to_owned()))?;
        let key = PrivateKeyDer::from_pem_slice(key.as_bytes())
            .map_err(|error| TlsError::Key(error.to_string()))?;
        Ok(Self { fingerprint: fingerprint_of(own), chain, key })
    }

    /// Returns what a join link names.
    #[must_use]
    pub const fn fingerprint(&self) -> Fingerprint {
        self.fingerprint
    }

    /// Returns when the certificate is valid, if it says so legibly.
    #[must_use]
    pub fn validity(&self) -> Option<Validity> {
        certificate::validity(self.chain.first()?)
    }

    /// Returns whether the certificate is for a host name or address.
    #[must_use]
    pub fn is_for(&self, host: &str) -> bool {
        self.chain.first().is_some_and(|own| certificate::is_for(own, host))
    }

    /// Returns an acceptor that speaks the protocols with these ALPN names ([`ALPN`] among them).
    ///
    /// # Errors
    /// When the key does not belong to the certificate.
    pub fn acceptor(&self, alpn: &[&[u8]]) -> Result<TlsAcceptor, TlsError> {
        let mut config = ServerConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .with_no_client_auth()
            .with_single_cert(self.chain.clone(), self.key.clone_key())?;
        config.alpn_protocols = alpn.iter().map(|name| name.to_vec()).collect();
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
        Ok(TlsAcceptor::from(Arc::new(config)))
    }
}

impl fmt::Debug for ServerIdentity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ServerIdentity")
            .field("fingerprint", &self.fingerprint)
            .finish_non_exhaustive()
    }
}

/// Returns a connector that accepts only a server trusted in this way.
pub(super) fn connector(trust: Trust) -> Result<TlsConnector, TlsError> {
    let provider = provider();
    let verifier: Arc<dyn ServerCertVerifier> = match trust {
        Trust::Pinned(expected) => {
            Arc::new(PinnedVerifier { expected, provider: Arc::clone(&provider) })
        }
        Trust::PublicAuthority => {
            Arc::new(rustls_platform_verifier::Verifier::new(Arc::clone(&provider))?)
        }
    };
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(verifier)
        .with_no_client_auth();
    config.alpn_protocols = vec![ALPN.to_vec()];
    config.resumption = Resumption::disabled();
    Ok(TlsConnector::from(Arc::new(config)))
}

/// Accepts one certificate, and its holder only: the handshake's signature is checked as always.
#[derive(Debug)]
struct PinnedVerifier {
    expected: Fingerprint,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for PinnedVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let found = fingerprint_of(end_entity);
        if found == self.expected {
            return Ok(ServerCertVerified::assertion());
        }
        let wrong = WrongFingerprint { expected: self.expected, found };
        Err(CertificateError::Other(OtherError(Arc::new(wrong))).into())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(rustls::PeerIncompatible::Tls12NotOffered.into())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, cert, dss, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}
