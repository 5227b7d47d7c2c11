//! Bounded GETs to workers: one keep-alive client for pages and small JSON answers.

use std::path::{Path, PathBuf};
use std::time::Duration;

/// Why a page could not be read.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum FetchError {
    /// Nobody listens there.
    #[error("cannot connect: {0}")]
    Connect(String),
    #[error("no answer within {0:?}")]
    Timeout(Duration),
    #[error("status {0}")]
    Status(u16),
    #[error("the answer is larger than {0} bytes")]
    TooLarge(usize),
    #[error("{0}")]
    Transfer(String),
}

/// How workers are spoken to over HTTPS.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct WorkerTls {
    /// Takes any certificate. The field's default: workers sign their own, and a page tells nobody
    /// anything that would be worth more.
    pub insecure_skip_verify: bool,
    /// PEM file of certificate authorities, instead of the system's.
    pub ca: Option<PathBuf>,
    /// PEM files of a certificate and its key, shown to workers that ask for one.
    pub client: Option<(PathBuf, PathBuf)>,
}

impl Default for WorkerTls {
    fn default() -> Self {
        Self {
            insecure_skip_verify: true,
            ca: None,
            client: None,
        }
    }
}

/// Why a client could not be made.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    #[error("cannot read {}: {reason}", path.display())]
    Read { path: PathBuf, reason: String },
    #[error("{} holds no PEM certificates: {reason}", path.display())]
    Certificates { path: PathBuf, reason: String },
    #[error("{} and {} are no certificate with its key: {reason}", certificate.display(), key.display())]
    Identity {
        certificate: PathBuf,
        key: PathBuf,
        reason: String,
    },
    #[error("cannot set up HTTP: {0}")]
    Setup(#[from] reqwest::Error),
}

/// A client that keeps one idle connection per worker, follows no redirect and no proxy variable:
/// workers are dialled by address.
#[derive(Clone, Debug)]
pub struct WorkerClient {
    client: reqwest::Client,
    timeout: Duration,
}

impl WorkerClient {
    /// A client whose whole exchanges end within `timeout`. Fails where the TLS set-up of the
    /// process does.
    pub fn new(timeout: Duration) -> Result<Self, reqwest::Error> {
        let client = builder(timeout).build()?;
        Ok(Self { client, timeout })
    }

    /// The same with settings for `https` addresses.
    pub fn with_tls(timeout: Duration, tls: &WorkerTls) -> Result<Self, ClientError> {
        let mut builder =
            builder(timeout).tls_danger_accept_invalid_certs(tls.insecure_skip_verify);
        if let Some(path) = &tls.ca {
            let bundle = reqwest::Certificate::from_pem_bundle(&read(path)?)
                .map_err(|error| error.to_string())
                .and_then(|found| match found.len() {
                    0 => Err("the file has none".to_owned()),
                    _ => Ok(found),
                })
                .map_err(|reason| ClientError::Certificates {
                    path: path.clone(),
                    reason,
                })?;
            builder = builder.tls_certs_only(bundle);
        }
        if let Some((certificate, key)) = &tls.client {
            let mut pem = read(certificate)?;
            pem.push(b'\n');
            pem.extend(read(key)?);
            let identity =
                reqwest::Identity::from_pem(&pem).map_err(|error| ClientError::Identity {
                    certificate: certificate.clone(),
                    key: key.clone(),
                    reason: error.to_string(),
                })?;
            builder = builder.identity(identity);
        }
        let client = builder.build()?;
        Ok(Self { client, timeout })
    }

    /// Reads a page into `body`, whose allocation is reused. A body of more than `bytes_max` is
    /// refused.
    pub async fn get(
        &self,
        url: &str,
        bytes_max: usize,
        body: &mut Vec<u8>,
    ) -> Result<(), FetchError> {
        body.clear();
        let mut response = self
            .client
            .get(url)
            .send()
            .await
            .map_err(|error| self.classify(&error))?;
        if !response.status().is_success() {
            return Err(FetchError::Status(response.status().as_u16()));
        }
        while let Some(chunk) = response
            .chunk()
            .await
            .map_err(|error| self.classify(&error))?
        {
            if body.len() + chunk.len() > bytes_max {
                return Err(FetchError::TooLarge(bytes_max));
            }
            body.extend_from_slice(&chunk);
        }
        Ok(())
    }

    fn classify(&self, error: &reqwest::Error) -> FetchError {
        if error.is_timeout() {
            FetchError::Timeout(self.timeout)
        } else if error.is_connect() {
            FetchError::Connect(error.to_string())
        } else {
            FetchError::Transfer(error.to_string())
        }
    }
}

fn builder(timeout: Duration) -> reqwest::ClientBuilder {
    // The client is built with TLS support even though most workers are read in the clear, and takes
    // the process's provider; where another part installed one already, that one stays.
    let _ = rustls::crypto::ring::default_provider().install_default();
    reqwest::Client::builder()
        .timeout(timeout)
        .connect_timeout(timeout)
        .pool_max_idle_per_host(1)
        .http1_only()
        .no_proxy()
        .redirect(reqwest::redirect::Policy::none())
}

fn read(path: &Path) -> Result<Vec<u8>, ClientError> {
    std::fs::read(path).map_err(|error| ClientError::Read {
        path: path.to_owned(),
        reason: error.to_string(),
    })
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::{SocketAddr, TcpListener};
    use std::sync::Arc;

    use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};

    use super::*;

    const TIMEOUT: Duration = Duration::from_secs(5);

    /// A worker for 127.0.0.1 that answers over HTTPS, and its certificate as PEM.
    fn tls_worker() -> (SocketAddr, String) {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let made = rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()]).unwrap();
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(made.signing_key.serialize_der()));
        let config = rustls::ServerConfig::builder()
            .with_no_client_auth()
            .with_single_cert(vec![CertificateDer::from(made.cert.der().to_vec())], key)
            .unwrap();
        let config = Arc::new(config);
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        std::thread::spawn(move || {
            for socket in listener.incoming().map_while(Result::ok) {
                let connection = rustls::ServerConnection::new(Arc::clone(&config)).unwrap();
                let mut stream = rustls::StreamOwned::new(connection, socket);
                let mut request = [0; 4096];
                if stream.read(&mut request).is_ok() {
                    let _ = stream.write_all(
                        b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\nconnection: close\r\n\r\npage",
                    );
                    stream.conn.send_close_notify();
                    let _ = stream.flush();
                }
            }
        });
        (address, made.cert.pem())
    }

    async fn get(tls: &WorkerTls, address: SocketAddr) -> Result<Vec<u8>, FetchError> {
        let client = WorkerClient::with_tls(TIMEOUT, tls).unwrap();
        let mut body = Vec::new();
        let url = format!("https://{address}/metrics");
        client.get(&url, 100, &mut body).await.map(|()| body)
    }

    #[tokio::test]
    async fn certificates_are_verified_only_where_that_is_asked_for() {
        let (address, pem) = tls_worker();
        assert_eq!(get(&WorkerTls::default(), address).await.unwrap(), b"page");
        let strict = WorkerTls {
            insecure_skip_verify: false,
            ..WorkerTls::default()
        };
        assert!(get(&strict, address).await.is_err());
        let folder = tempfile::tempdir().unwrap();
        let ca = folder.path().join("ca.pem");
        std::fs::write(&ca, pem).unwrap();
        let known = WorkerTls {
            ca: Some(ca),
            ..strict
        };
        assert_eq!(get(&known, address).await.unwrap(), b"page");
    }

    #[test]
    fn files_that_are_no_certificates_are_named() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("empty.pem");
        std::fs::write(&file, "nothing").unwrap();
        let refused = |tls: WorkerTls| {
            let error = WorkerClient::with_tls(TIMEOUT, &tls).unwrap_err();
            error.to_string()
        };
        let with_ca = |path: PathBuf| WorkerTls {
            ca: Some(path),
            ..WorkerTls::default()
        };
        assert!(refused(with_ca(file.clone())).contains("empty.pem"));
        assert!(refused(with_ca(folder.path().join("gone.pem"))).contains("gone.pem"));
        let client = WorkerTls {
            client: Some((file.clone(), file)),
            ..WorkerTls::default()
        };
        assert!(refused(client).contains("certificate with its key"));
    }
}
