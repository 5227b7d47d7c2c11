//! TLS of the ext_proc port: its certificate, versions and cipher suites.
//!
//! Gateways speak TLS to a picker by default and most do not verify who answers, so without files a
//! self-signed certificate is made at start-up and lives as long as the process. `--cert-path`
//! names a folder with `tls.crt` and `tls.key`, the layout of a mounted Kubernetes secret; with
//! `--enable-cert-reload` a renewed pair is served to new connections without a restart. Both files
//! are compared by content; a pair that does not fit together, such as in the middle of a renewal,
//! is refused and the old one goes on.

mod incoming;
mod stream;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use arc_swap::ArcSwap;
use rustls::ServerConfig;
use rustls::crypto::{CryptoProvider, ring};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls::version::{TLS12, TLS13};
use tracing::{info, warn};

use crate::config::TlsOptions;
use crate::config::tls::{CipherSuite, TlsVersion};
use crate::config::watch::{self, FileContent, INTERVAL, Look, ReloadState};

pub use incoming::incoming;
pub use stream::TlsStream;

/// Names in the self-signed certificate.
const SELF_SIGNED_NAMES: [&str; 2] = ["localhost", "epp"];

/// Larger certificate and key files are refused.
const PEM_BYTES_MAX: usize = 1 << 20;

/// The protocol that gRPC needs.
const ALPN_H2: &[u8] = b"h2";

#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// The text names the file.
    #[error("cannot read {0}")]
    Read(String),
    #[error("{} holds no certificate that can be read: {reason}", path.display())]
    Certificate { path: PathBuf, reason: String },
    #[error("{} holds no private key that can be read: {reason}", path.display())]
    Key { path: PathBuf, reason: String },
    #[error("the certificate and the key in {} do not fit together: {source}", folder.display())]
    Pair {
        folder: PathBuf,
        source: rustls::Error,
    },
    #[error("cannot make a self-signed certificate: {0}")]
    SelfSigned(String),
    #[error("--tls-min-version and --tls-cipher-suites leave nothing to speak: {0}")]
    NothingToSpeak(rustls::Error),
}

/// A secured port.
#[derive(Debug)]
pub struct Tls {
    pub config: Arc<ServerConfig>,
    /// To be run beside the port, where the certificate's files are to be followed.
    pub reload: Option<CertificateReload>,
}

/// TLS with the certificate of a folder, or a self-signed one without.
pub fn server_tls(folder: Option<&Path>, options: &TlsOptions) -> Result<Tls, TlsError> {
    let provider = Arc::new(provider(&options.cipher_suites));
    let (pair, key) = match folder {
        Some(folder) => {
            let pair = Pair::read(folder);
            let key = pair.certified(folder, &provider)?;
            (Some((folder, pair)), key)
        }
        None => (None, self_signed(&provider)?),
    };
    let served = Arc::new(Served {
        key: ArcSwap::from_pointee(key),
    });
    let versions: &[_] = match options.min_version {
        TlsVersion::Tls12 => &[&TLS13, &TLS12],
        TlsVersion::Tls13 => &[&TLS13],
    };
    let mut config = ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_protocol_versions(versions)
        .map_err(TlsError::NothingToSpeak)?
        .with_no_client_auth()
        .with_cert_resolver(Arc::clone(&served) as Arc<dyn ResolvesServerCert>);
    config.alpn_protocols = vec![ALPN_H2.to_vec()];
    let reload = pair
        .filter(|_| options.reload)
        .map(|(folder, pair)| CertificateReload {
            folder: folder.to_owned(),
            content: FileContent::new(pair),
            provider,
            served,
            state: Arc::default(),
        });
    Ok(Tls {
        config: Arc::new(config),
        reload,
    })
}

/// The same with every default, and without following the files.
pub fn server_config(folder: Option<&Path>) -> Result<Arc<ServerConfig>, TlsError> {
    server_tls(folder, &TlsOptions::default()).map(|tls| tls.config)
}

/// Chooses ring as the process's TLS provider. Libraries that ask for the default one panic where
/// none was chosen.
pub fn install_provider() {
    // An error means that one was chosen before, which serves as well.
    let _ = ring::default_provider().install_default();
}

/// All suites of TLS 1.3, and those of TLS 1.2 that are wanted; all where none is named.
fn provider(wanted: &[CipherSuite]) -> CryptoProvider {
    let mut provider = ring::default_provider();
    if !wanted.is_empty() {
        provider.cipher_suites.retain(|suite| {
            let id = u16::from(suite.suite());
            suite.tls13().is_some() || wanted.iter().any(|wanted| wanted.id == id)
        });
    }
    provider
}

/// The certificate of the moment.
#[derive(Debug)]
struct Served {
    key: ArcSwap<CertifiedKey>,
}

impl ResolvesServerCert for Served {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.key.load_full())
    }
}

/// What the two files of a folder hold.
#[derive(Clone, PartialEq, Eq)]
struct Pair {
    certificate: watch::Content,
    key: watch::Content,
}

/// Keys stay out of logs.
impl std::fmt::Debug for Pair {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Pair").finish_non_exhaustive()
    }
}

impl Pair {
    fn read(folder: &Path) -> Self {
        let read = |name| watch::read(&folder.join(name), PEM_BYTES_MAX);
        Self {
            certificate: read("tls.crt"),
            key: read("tls.key"),
        }
    }

    fn certified(
        &self,
        folder: &Path,
        provider: &CryptoProvider,
    ) -> Result<CertifiedKey, TlsError> {
        let text = |content: &watch::Content| content.clone().map_err(TlsError::Read);
        let certificate = text(&self.certificate)?;
        let key = text(&self.key)?;
        let no_certificate = |reason: String| TlsError::Certificate {
            path: folder.join("tls.crt"),
            reason,
        };
        let chain: Vec<CertificateDer<'static>> =
            CertificateDer::pem_slice_iter(certificate.as_bytes())
                .collect::<Result<_, _>>()
                .map_err(|error| no_certificate(error.to_string()))?;
        if chain.is_empty() {
            return Err(no_certificate("there is no PEM block in it".to_owned()));
        }
        let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).map_err(|error| TlsError::Key {
            path: folder.join("tls.key"),
            reason: error.to_string(),
        })?;
        CertifiedKey::from_der(chain, key, provider).map_err(|source| TlsError::Pair {
            folder: folder.to_owned(),
            source,
        })
    }
}

fn self_signed(provider: &CryptoProvider) -> Result<CertifiedKey, TlsError> {
    let failed = |error: String| TlsError::SelfSigned(error);
    let made = rcgen::generate_simple_self_signed(SELF_SIGNED_NAMES.map(str::to_owned))
        .map_err(|error| failed(error.to_string()))?;
    let key = PrivateKeyDer::try_from(made.signing_key.serialize_der())
        .map_err(|error| failed(error.to_owned()))?;
    CertifiedKey::from_der(vec![made.cert.der().clone()], key, provider)
        .map_err(|error| failed(error.to_string()))
}

/// Follows the files of a certificate folder.
#[derive(Debug)]
pub struct CertificateReload {
    folder: PathBuf,
    content: FileContent<Pair>,
    provider: Arc<CryptoProvider>,
    served: Arc<Served>,
    state: Arc<ReloadState>,
}

impl CertificateReload {
    /// The counts and the last error, to be exported.
    pub fn state(&self) -> Arc<ReloadState> {
        Arc::clone(&self.state)
    }

    /// Follows the files until the future is dropped.
    pub async fn run(mut self) {
        let mut turns = tokio::time::interval(INTERVAL);
        turns.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            turns.tick().await;
            let folder = self.folder.clone();
            if let Ok(pair) = tokio::task::spawn_blocking(move || Pair::read(&folder)).await {
                self.look(pair);
            }
        }
    }

    fn look(&mut self, pair: Pair) {
        if self.content.look(pair) == Look::Same {
            return;
        }
        let folder = self.folder.display();
        match self.content.last().certified(&self.folder, &self.provider) {
            Ok(key) => {
                self.served.key.store(Arc::new(key));
                info!(%folder, "certificate loaded again");
                self.state.taken();
            }
            Err(error) => {
                warn!(%folder, %error, "certificate refused, the one before goes on");
                self.state.refused(error.to_string());
            }
        }
    }
}

#[cfg(test)]
mod tests;
