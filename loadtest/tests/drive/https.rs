//! `loadtest drive` over TLS: who is believed to be the server, and what is said of one that is not.

use std::convert::Infallible;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

use bytes::Bytes;
use futures_util::stream::unfold;
use http_body_util::StreamBody;
use hyper::body::{Body, Frame, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair, date_time_ymd,
};
use rustls::ServerConfig;
use rustls::crypto::ring;
use rustls::pki_types::PrivateKeyDer;
use tokio_rustls::TlsAcceptor;

use super::*;

const REQUESTS: usize = 20;
const CHAT: [&str; 6] = [
    "--form=chat",
    "--workload=unique",
    "--requests=20",
    "--concurrency=2",
    "--slo-ttft=100s",
    "--json",
];
const MODELS: &str = r#"{"data": [{"id": "secured"}]}"#;
const EVENTS: [&str; 3] = [
    "data: {\"choices\":[{\"delta\":{\"content\":\"a\"}}]}\n\n",
    "data: {\"choices\":[{\"delta\":{\"content\":\"b\"},\"finish_reason\":\"stop\"}]}\n\n",
    "data: [DONE]\n\n",
];

/// Signs certificates of servers. Its own is in `file`.
struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
    file: PathBuf,
    _folder: TempDir,
}

impl Authority {
    /// Authorities of one name are told apart by their keys only.
    fn new(name: &str) -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("ca.pem");
        std::fs::write(&file, issuer.pem()).unwrap();
        Self {
            issuer,
            file,
            _folder: folder,
        }
    }

    /// The settings of a server with a certificate for `name`.
    fn server(&self, name: &str, last_year: i32) -> ServerConfig {
        self.sign(name, last_year, IsCa::NoCa)
    }

    fn sign(&self, name: &str, last_year: i32, is_ca: IsCa) -> ServerConfig {
        let mut params = CertificateParams::new([name.to_owned()]).unwrap();
        params.is_ca = is_ca;
        params.not_before = date_time_ymd(2000, 1, 1);
        params.not_after = date_time_ymd(last_year, 12, 31);
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        let key = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
        let provider = Arc::new(ring::default_provider());
        let builder = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap();
        let mut config = builder
            .with_no_client_auth()
            .with_single_cert(vec![certificate.der().clone()], key)
            .unwrap();
        // Each of them would rather speak HTTP/2.
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        config
    }

    fn flag(&self) -> String {
        format!("--ca-file={}", self.file.display())
    }
}

/// Answers chats over TLS on loopback and counts the connections that came to that.
struct Server {
    url: String,
    connections: Arc<AtomicUsize>,
}

impl Server {
    async fn start(config: ServerConfig) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let url = format!("https://{}", listener.local_addr().unwrap());
        let acceptor = TlsAcceptor::from(Arc::new(config));
        let connections = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&connections);
        tokio::spawn(async move {
            while let Ok((socket, _)) = listener.accept().await {
                tokio::spawn(serve(acceptor.clone(), socket, Arc::clone(&count)));
            }
        });
        Self { url, connections }
    }

    /// As errors name it.
    fn address(&self) -> &str {
        self.url.trim_start_matches("https://")
    }
}

async fn serve(acceptor: TlsAcceptor, socket: TcpStream, connections: Arc<AtomicUsize>) {
    let Ok(stream) = acceptor.accept(socket).await else {
        return;
    };
    connections.fetch_add(1, SeqCst);
    let protocol = stream.get_ref().1.alpn_protocol().map(<[u8]>::to_vec);
    assert_eq!(protocol.as_deref(), Some(b"http/1.1".as_slice()));
    let _ended = http1::Builder::new()
        .serve_connection(TokioIo::new(stream), service_fn(answer))
        .await;
}

/// The name of the model, or a chat in as many pieces as it has events.
async fn answer(
    request: Request<Incoming>,
) -> Result<Response<impl Body<Data = Bytes, Error = Infallible>>, Infallible> {
    let pieces: &[&str] = match request.uri().path() {
        "/v1/models" => &[MODELS],
        _ => &EVENTS,
    };
    let events = unfold(pieces.iter(), async |mut left| {
        let piece = left.next()?;
        // What came before goes out on its own.
        tokio::task::yield_now().await;
        Some((Ok(Frame::data(Bytes::from_static(piece.as_bytes()))), left))
    });
    Ok(Response::new(StreamBody::new(events)))
}

/// A program whose platform has the certificates of `roots`.
fn program_with_roots(roots: &Path) -> Command {
    let mut program = program();
    program
        .env("SSL_CERT_FILE", roots)
        .env_remove("SSL_CERT_DIR");
    program
}

fn check_answered(driven: &Driven) {
    let run = &driven.report.runs[0];
    assert_eq!(
        (run.succeeded, run.failed.len()),
        (REQUESTS, 0),
        "{:?}",
        run.failed
    );
    assert_eq!(driven.report.model, "secured");
    assert!(run.ttft.as_ref().unwrap().p50_ms > 0.0 && run.good_share > 0.99);
    for record in &driven.records {
        let (first, last) = (record.first_token.unwrap(), record.last_token.unwrap());
        assert!(record.sent.unwrap() < first && first <= last && last <= record.end);
        assert_eq!(record.answer_tokens, 2);
    }
}

#[tokio::test]
async fn chats_are_streamed_over_tls_on_connections_that_are_kept() {
    let authority = Authority::new("known");
    let server = Server::start(authority.server("127.0.0.1", 2999)).await;
    let mut flags = CHAT.to_vec();
    let flag = authority.flag();
    flags.push(&flag);
    // Where the file stands, the platform's roots do not count.
    let driven = drive_by(program_with_roots(Path::new("/none")), &server.url, &flags).await;
    check_answered(&driven);
    assert_eq!(
        (&driven.report.url, driven.warnings.as_str()),
        (&server.url, "")
    );
    let connections = server.connections.load(SeqCst);
    // A request that finds no idle one opens another, so it may be more than two.
    assert!(connections < REQUESTS / 2, "{connections}");
}

#[tokio::test]
async fn roots_of_the_platform_are_believed() {
    let authority = Authority::new("known");
    let server = Server::start(authority.server("127.0.0.1", 2999)).await;
    check_answered(&drive_by(program_with_roots(&authority.file), &server.url, &CHAT).await);
}

/// What became of three requests, in the one sentence that all of them have.
async fn failure(program: Command, url: &str, flags: &[&str]) -> String {
    let few = [
        "--workload=unique",
        "--requests=3",
        "--rate=1000",
        "--model=m",
    ];
    let driven = drive_by(program, url, &[&few, flags].concat()).await;
    let failed = &driven.report.runs[0].failed;
    let connect = &failed[&ErrorClass::Connect];
    assert_eq!((connect.count, failed.len()), (3, 1), "{failed:?}");
    assert!(driven.records.iter().all(|record| record.sent.is_some()));
    assert_eq!(connect.examples.len(), 1, "{connect:?}");
    connect.examples[0].clone()
}

#[tokio::test]
async fn a_server_that_is_not_believed_fails_each_request_with_the_reason() {
    let (known, other) = (Authority::new("known"), Authority::new("other"));
    let good = Server::start(known.server("127.0.0.1", 2999)).await;
    let expired = Server::start(known.server("127.0.0.1", 2001)).await;
    let misnamed = Server::start(known.server("else.example", 2999)).await;
    let is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let authority = Server::start(known.sign("127.0.0.1", 2999, is_ca)).await;
    let (with_known, with_other) = (known.flag(), other.flag());
    let renewed = Authority::new("known");
    let with_renewed = renewed.flag();
    let cases = [
        (&good, None, "unknown issuer"),
        (&good, Some(&with_other), "unknown issuer"),
        (&good, Some(&with_renewed), "bad signature"),
        (&expired, Some(&with_known), "expired"),
        (&misnamed, Some(&with_known), "name mismatch"),
        (&authority, Some(&with_known), "not a server's"),
    ];
    for (server, flag, reason) in cases {
        let flags: Vec<&str> = flag.map(String::as_str).into_iter().collect();
        let text = failure(program_with_roots(&other.file), &server.url, &flags).await;
        let expected = format!("TLS with {} failed: {reason}", server.address());
        assert!(text.starts_with(&expected), "{text}");
    }
    let text = failure(program_with_roots(&known.file), &misnamed.url, &[]).await;
    assert!(text.contains("else.example"), "{text}");
}

/// The question for the model's name fails before anything is measured, with the same reason.
#[tokio::test]
async fn the_model_is_not_asked_of_a_server_that_is_not_believed() {
    let (known, other) = (Authority::new("known"), Authority::new("other"));
    let server = Server::start(known.server("127.0.0.1", 2999)).await;
    let error = refused(&[&format!("--url={}", server.url), &other.flag()]).await;
    assert!(error.contains("asking for it failed"), "{error}");
    let reason = format!("TLS with {} failed: unknown issuer", server.address());
    assert!(error.contains(&reason), "{error}");
}

#[tokio::test]
async fn what_is_no_tls_fails_each_request_as_well() {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    let server = tokio::spawn(async move {
        while let Ok((mut socket, _)) = listener.accept().await {
            let _sent = socket.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").await;
            // What the client has to say is read first: what is unread resets the connection, and takes that line away.
            let mut hello = [0; 4096];
            while socket.read(&mut hello).await.is_ok_and(|length| length > 0) {}
        }
    });
    let (url, flags) = (format!("https://{address}"), ["--insecure"]);
    let text = failure(program(), &url, &flags).await;
    let expected = format!("TLS with {address} failed: the server does not seem to speak TLS");
    assert!(text.starts_with(&expected), "{text}");
    server.abort();
    let _ended = server.await;
    let text = failure(program(), &url, &flags).await;
    assert!(text.contains("Connection refused"), "{text}");
}

#[tokio::test]
async fn any_certificate_is_taken_where_that_is_asked_for() {
    let authority = Authority::new("known");
    let server = Server::start(authority.server("else.example", 2001)).await;
    let mut flags = CHAT.to_vec();
    flags.push("--insecure");
    let driven = drive(&server.url, &flags).await;
    check_answered(&driven);
    assert!(
        driven
            .warnings
            .starts_with("WARNING: --insecure: any certificate is taken")
    );
    assert_eq!(driven.warnings.lines().count(), 1, "{}", driven.warnings);
}

/// The one line that a call ends with that sends nothing.
async fn refused(flags: &[&str]) -> String {
    let mut program = program();
    let output = program.args(flags).arg("--json").output().await.unwrap();
    assert!(!output.status.success());
    let text = String::from_utf8(output.stdout).unwrap();
    assert_eq!(text.lines().count(), 1, "{text}");
    let line: serde_json::Value = serde_json::from_str(&text).unwrap();
    line["error"].as_str().unwrap().to_owned()
}

#[tokio::test]
async fn flags_that_cannot_hold_are_refused() {
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR")).join("Cargo.toml");
    let file = format!("--ca-file={}", manifest.display());
    let error = refused(&["--url=https://127.0.0.1:1", "--model=m", &file]).await;
    assert!(
        error.ends_with("Cargo.toml holds no PEM certificate"),
        "{error}"
    );
    for flag in [file.as_str(), "--insecure"] {
        let error = refused(&["--url=http://127.0.0.1:1/v1", "--model=m", flag]).await;
        let expected =
            "--ca-file and --insecure are for https:// URLs, and http://127.0.0.1:1 has no TLS";
        assert_eq!(error, expected);
    }
    let error = refused(&["--url=ftp://127.0.0.1:1"]).await;
    assert_eq!(
        error,
        "ftp://127.0.0.1:1 begins with neither http:// nor https://"
    );
    let mut program = program_with_roots(Path::new("/none"));
    let output = program
        .arg("--url=https://127.0.0.1:1")
        .output()
        .await
        .unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(
        text.contains("no root certificates of this platform can be used"),
        "{text}"
    );
}
