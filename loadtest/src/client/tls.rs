//! TLS of the client: whom it believes to be the server, and why a handshake failed, in words.
//!
//! HTTP/1.1 is all that is offered (ALPN `http/1.1`, never `h2`): what is measured are streams of HTTP/1.1, each on a
//! connection of its own, over TLS as in the clear. A file of authorities stands in place of the platform's roots, as
//! `epp` has it for its workers: a run then means the same on every machine.

use std::error::Error as StdError;
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use http::Uri;
use hyper_util::client::legacy::Error as ClientError;
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, ring};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, Error, RootCertStore, SignatureScheme,
};

/// The only protocol that is offered.
const ALPN: &[u8] = b"http/1.1";
/// A longer file of certificates is refused. The roots that browsers ship take a quarter of a megabyte.
const PEM_BYTES_MAX: u64 = 4 << 20;

/// Whose certificates are believed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Trust {
    /// Those that one of the platform's roots vouches for.
    Platform,
    /// Those that a certificate of this PEM file vouches for, and no other.
    CaFile(PathBuf),
    /// Any: who the server is remains unknown.
    Anyone,
}

/// TLS with a server failed before there was an answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("TLS with {server} failed: {reason}")]
pub(crate) struct TlsFailure {
    server: String,
    reason: String,
    /// Nothing was sent yet.
    pub(crate) is_handshake: bool,
}

impl TlsFailure {
    /// `None` where TLS is not what failed, such as a connection that is refused.
    pub(super) fn of(uri: &Uri, error: &ClientError) -> Option<Self> {
        let source = error.source()?;
        // A connector's TCP errors are of its own type; what the handshake ended with comes as it is.
        let handshake = source
            .downcast_ref::<io::Error>()
            .filter(|_| error.is_connect());
        let reason = match (tls_error(source), handshake) {
            (Some(error), _) => reason(error),
            (None, Some(error)) => error.to_string(),
            (None, None) => return None,
        };
        Some(Self {
            server: server(uri),
            reason,
            is_handshake: error.is_connect(),
        })
    }
}

/// The settings of all connections of a client.
pub(super) fn config(trust: &Trust) -> Result<ClientConfig> {
    let provider = Arc::new(ring::default_provider());
    let builder = ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()?;
    let mut config = builder
        .dangerous()
        .with_custom_certificate_verifier(verifier(trust, provider)?)
        .with_no_client_auth();
    config.alpn_protocols = vec![ALPN.to_vec()];
    Ok(config)
}

fn verifier(trust: &Trust, provider: Arc<CryptoProvider>) -> Result<Arc<dyn ServerCertVerifier>> {
    Ok(match trust {
        Trust::Platform => Arc::new(
            rustls_platform_verifier::Verifier::new(provider)
                .context("no root certificates of this platform can be used")?,
        ),
        Trust::CaFile(path) => {
            let roots = roots(path)?;
            WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider).build()?
        }
        Trust::Anyone => Arc::new(AnyServer(provider)),
    })
}

/// The authorities of a PEM file. What else it holds, such as a key, is passed over.
fn roots(path: &Path) -> Result<RootCertStore> {
    let shown = path.display();
    let pem = read(path).with_context(|| format!("cannot read {shown}"))?;
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(&pem) {
        let number = roots.len() + 1;
        let certificate = certificate.map_err(anyhow::Error::new);
        certificate
            .and_then(|certificate| Ok(roots.add(certificate)?))
            .with_context(|| format!("{shown}: certificate {number} cannot be read"))?;
    }
    ensure!(!roots.is_empty(), "{shown} holds no PEM certificate");
    Ok(roots)
}

fn read(path: &Path) -> Result<Vec<u8>> {
    let mut pem = Vec::new();
    File::open(path)?
        .take(PEM_BYTES_MAX + 1)
        .read_to_end(&mut pem)?;
    ensure!(
        pem.len() as u64 <= PEM_BYTES_MAX,
        "it is longer than {PEM_BYTES_MAX} bytes"
    );
    Ok(pem)
}

/// The host and port that were asked for, without what else a URL may hold, such as a password.
fn server(uri: &Uri) -> String {
    let host = uri.host().unwrap_or_default();
    format!("{host}:{}", uri.port_u16().unwrap_or(443))
}

/// What TLS itself has to say, wherever the layers between have put it.
fn tls_error<'a>(error: &'a (dyn StdError + 'static)) -> Option<&'a Error> {
    if let Some(found) = error.downcast_ref::<Error>() {
        return Some(found);
    }
    // An I/O error passes over the error that it wraps when it is asked for its source.
    let inner: Option<&'a (dyn StdError + 'static)> = match error.downcast_ref::<io::Error>() {
        Some(wrapper) => wrapper.get_ref().map(|inner| inner as _),
        None => error.source(),
    };
    tls_error(inner?)
}

/// In words that stay the same from one request to the next: failures are counted by them.
fn reason(error: &Error) -> String {
    use CertificateError as Certificate;
    match error {
        Error::InvalidCertificate(Certificate::UnknownIssuer) => {
            "unknown issuer: no trusted root has signed the server's certificate".to_owned()
        }
        Error::InvalidCertificate(Certificate::BadSignature) => {
            "bad signature: a root of the issuer's name has not signed the server's certificate"
                .to_owned()
        }
        Error::InvalidCertificate(Certificate::Expired | Certificate::ExpiredContext { .. }) => {
            "expired: the server's certificate is no longer valid".to_owned()
        }
        Error::InvalidCertificate(
            Certificate::NotValidYet | Certificate::NotValidYetContext { .. },
        ) => "the server's certificate is not valid yet".to_owned(),
        Error::InvalidCertificate(
            error @ (Certificate::NotValidForName | Certificate::NotValidForNameContext { .. }),
        ) => format!("name mismatch: {error}"),
        // The library has no type for this one, which a certificate of `openssl req -x509` runs into.
        Error::InvalidCertificate(Certificate::Other(other))
            if other.to_string().contains("CaUsedAsEndEntity") =>
        {
            "not a server's: the certificate is an authority's own (CaUsedAsEndEntity)".to_owned()
        }
        Error::InvalidMessage(_) => format!("the server does not seem to speak TLS ({error})"),
        _ => error.to_string(),
    }
}

/// Takes every server for the one that was asked for, whatever it shows.
#[derive(Debug)]
struct AnyServer(Arc<CryptoProvider>);

impl ServerCertVerifier for AnyServer {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(content: &[u8]) -> String {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("ca.pem");
        std::fs::write(&path, content).unwrap();
        let error = config(&Trust::CaFile(path)).unwrap_err();
        format!("{error:#}")
    }

    #[test]
    fn a_file_of_authorities_is_read_whole_or_refused_by_name() {
        let made = rcgen::generate_simple_self_signed(["a".to_owned()]).unwrap();
        let (certificate, key) = (made.cert.pem(), made.signing_key.serialize_pem());
        for nothing in ["", "nothing", &key] {
            let text = refused(nothing.as_bytes());
            assert!(text.ends_with("ca.pem holds no PEM certificate"), "{text}");
        }
        let cut = &certificate[..certificate.len() / 2];
        let other = certificate.replacen("\nMII", "\nNII", 1);
        for broken in [cut, &other] {
            let text = refused(format!("{certificate}{broken}").as_bytes());
            assert!(
                text.contains("ca.pem: certificate 2 cannot be read: "),
                "{text}"
            );
        }
        let text = refused(&vec![b'\n'; PEM_BYTES_MAX as usize + 1]);
        assert!(text.contains("ca.pem: it is longer than"), "{text}");
        let gone = config(&Trust::CaFile(PathBuf::from("gone.pem"))).unwrap_err();
        let text = format!("{gone:#}");
        assert!(
            text.starts_with("cannot read gone.pem: No such file"),
            "{text}"
        );

        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("ca.pem");
        std::fs::write(&path, format!("{key}{certificate}{certificate}")).unwrap();
        assert_eq!(roots(&path).unwrap().len(), 2);
    }

    #[test]
    fn only_http1_is_offered() {
        let config = config(&Trust::Anyone).unwrap();
        assert_eq!(config.alpn_protocols, [b"http/1.1".to_vec()]);
    }

    #[test]
    fn a_server_is_named_without_secrets() {
        let named = |url: &str| server(&url.parse().unwrap());
        assert_eq!(named("https://me:secret@host/v1"), "host:443");
        assert_eq!(named("https://[::1]:8443"), "[::1]:8443");
    }

    #[test]
    fn what_layers_have_wrapped_is_found() {
        let inner = io::Error::new(io::ErrorKind::InvalidData, Error::DecryptError);
        assert_eq!(
            tls_error(&io::Error::other(inner)),
            Some(&Error::DecryptError)
        );
        assert_eq!(tls_error(&io::Error::other("eof")), None);
    }
}
