//! The secured port as a peer meets it: certificates, versions, suites, and bytes that arrive whole.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream as StdTcpStream};
use std::sync::atomic::Ordering::Relaxed;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::{ServerName, UnixTime};
use rustls::{ClientConfig, ClientConnection, DigitallySignedStruct, SignatureScheme, StreamOwned};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio_stream::StreamExt;

use super::*;

#[derive(Debug)]
struct AnyServer;

impl ServerCertVerifier for AnyServer {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        ring::default_provider()
            .signature_verification_algorithms
            .supported_schemes()
    }
}

fn options(min_version: TlsVersion, suites: &[&str]) -> TlsOptions {
    TlsOptions {
        min_version,
        cipher_suites: suites.iter().map(|name| name.parse().unwrap()).collect(),
        reload: true,
    }
}

/// Sends back whatever arrives, on every connection.
async fn echo(tls: &Tls) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let mut connections = incoming(listener, Arc::clone(&tls.config));
    tokio::spawn(async move {
        while let Some(Ok(stream)) = connections.next().await {
            tokio::spawn(async move {
                let (mut reader, mut writer) = tokio::io::split(stream);
                let _ = tokio::io::copy(&mut reader, &mut writer).await;
                let _ = writer.shutdown().await;
            });
        }
    });
    address
}

/// A blocking client of its own implementation of the protocol's other side.
fn connect(
    address: SocketAddr,
    versions: &[&'static rustls::SupportedProtocolVersion],
) -> std::io::Result<StreamOwned<ClientConnection, StdTcpStream>> {
    let mut config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_protocol_versions(versions)
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(AnyServer))
        .with_no_client_auth();
    config.alpn_protocols = vec![ALPN_H2.to_vec()];
    let name = ServerName::try_from("localhost").unwrap();
    let session = ClientConnection::new(Arc::new(config), name).unwrap();
    let mut stream = StreamOwned::new(session, StdTcpStream::connect(address)?);
    while stream.conn.is_handshaking() {
        stream.conn.complete_io(&mut stream.sock)?;
    }
    Ok(stream)
}

async fn spoken(
    address: SocketAddr,
    version: &'static rustls::SupportedProtocolVersion,
) -> Option<u16> {
    let connected = tokio::task::spawn_blocking(move || connect(address, &[version]));
    let stream = connected.await.unwrap().ok()?;
    assert_eq!(stream.conn.alpn_protocol(), Some(ALPN_H2));
    let suite = stream.conn.negotiated_cipher_suite()?;
    Some(suite.suite().into())
}

#[tokio::test(flavor = "multi_thread")]
async fn bytes_arrive_whole_and_the_end_is_orderly() {
    let tls = server_tls(None, &TlsOptions::default()).unwrap();
    let address = echo(&tls).await;
    let sent: Vec<u8> = (0..3_000_000_u32)
        .map(|at| ((at * 31) >> 3) as u8)
        .collect();
    let expected = sent.clone();
    let received = tokio::task::spawn_blocking(move || {
        let mut stream = connect(address, &[&TLS13]).unwrap();
        let mut received = Vec::new();
        for chunk in sent.chunks(100_000) {
            stream.write_all(chunk).unwrap();
            let mut back = vec![0; chunk.len()];
            stream.read_exact(&mut back).unwrap();
            received.extend(back);
        }
        stream.conn.send_close_notify();
        // An end without the peer's own notice would be an error.
        assert_eq!(stream.read_to_end(&mut Vec::new()).unwrap(), 0);
        received
    });
    assert!(received.await.unwrap() == expected);
}

#[tokio::test(flavor = "multi_thread")]
async fn oldest_version_is_kept() {
    let both = server_tls(None, &options(TlsVersion::Tls12, &[])).unwrap();
    let address = echo(&both).await;
    assert!(spoken(address, &TLS12).await.is_some());
    assert!(spoken(address, &TLS13).await.is_some());
    let newest = server_tls(None, &options(TlsVersion::Tls13, &[])).unwrap();
    let address = echo(&newest).await;
    assert_eq!(spoken(address, &TLS12).await, None);
    assert!(spoken(address, &TLS13).await.is_some());
}

#[tokio::test(flavor = "multi_thread")]
async fn only_the_named_suites_of_tls_1_2_are_spoken() {
    let suites = ["TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256"];
    let tls = server_tls(None, &options(TlsVersion::Tls12, &suites)).unwrap();
    let address = echo(&tls).await;
    assert_eq!(spoken(address, &TLS12).await, Some(0xcca9));
    assert!(spoken(address, &TLS13).await.is_some(), "those of 1.3 stay");
    let suites = ["TLS_AES_128_GCM_SHA256"];
    let tls = server_tls(None, &options(TlsVersion::Tls12, &suites)).unwrap();
    assert_eq!(spoken(echo(&tls).await, &TLS12).await, None);
}

#[tokio::test(flavor = "multi_thread")]
async fn peer_that_stalls_or_talks_nonsense_keeps_nobody_waiting() {
    let tls = server_tls(None, &TlsOptions::default()).unwrap();
    let address = echo(&tls).await;
    let _silent = StdTcpStream::connect(address).unwrap();
    let mut nonsense = tokio::net::TcpStream::connect(address).await.unwrap();
    nonsense.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
    let mut answer = Vec::new();
    let _ = nonsense.read_to_end(&mut answer).await;
    assert!(spoken(address, &TLS13).await.is_some());
}

fn write_pair(folder: &Path) {
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    std::fs::write(folder.join("tls.crt"), made.cert.pem()).unwrap();
    std::fs::write(folder.join("tls.key"), made.signing_key.serialize_pem()).unwrap();
}

#[test]
fn renewed_certificate_is_served_and_a_pair_that_does_not_fit_is_not() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    write_pair(folder);
    let tls = server_tls(Some(folder), &options(TlsVersion::Tls12, &[])).unwrap();
    let mut reload = tls.reload.expect("it was asked for");
    let state = reload.state();
    let served = |reload: &CertificateReload| reload.served.key.load().cert.clone();
    let first = served(&reload);

    let old_key = std::fs::read(folder.join("tls.key")).unwrap();
    write_pair(folder);
    let new_key = std::fs::read(folder.join("tls.key")).unwrap();
    std::fs::write(folder.join("tls.key"), old_key).unwrap();
    for _ in 0..2 {
        reload.look(Pair::read(folder));
    }
    assert!(served(&reload) == first);
    assert_eq!(state.refused.load(Relaxed), 1);
    assert!(state.last_error().unwrap().contains("do not fit together"));

    std::fs::write(folder.join("tls.key"), new_key).unwrap();
    reload.look(Pair::read(folder));
    assert!(served(&reload) != first);
    assert_eq!((state.loaded.load(Relaxed), state.last_error()), (1, None));
}

#[test]
fn files_that_are_missing_or_wrong_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let error = || {
        let tls = server_tls(Some(folder), &TlsOptions::default());
        tls.unwrap_err().to_string()
    };
    assert!(error().contains("tls.crt"));
    std::fs::write(folder.join("tls.crt"), "x").unwrap();
    assert!(error().contains("tls.key"));
    std::fs::write(folder.join("tls.key"), "x").unwrap();
    assert!(error().contains("tls.crt holds no certificate"));
    write_pair(folder);
    std::fs::write(folder.join("tls.key"), "x").unwrap();
    assert!(error().contains("tls.key holds no private key"));
}

#[test]
fn files_are_followed_only_when_asked() {
    let folder = tempfile::tempdir().unwrap();
    write_pair(folder.path());
    let tls = server_tls(Some(folder.path()), &TlsOptions::default()).unwrap();
    assert!(tls.reload.is_none());
}
