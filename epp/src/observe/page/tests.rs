//! Tests of the metrics port over a real socket.

use super::super::decisions::DecisionRecord;
use super::*;

struct Served {
    address: std::net::SocketAddr,
    client: reqwest::Client,
}

impl Served {
    async fn start() -> Self {
        let decisions = Arc::new(DecisionLog::default());
        for model in ["a", "b"] {
            decisions.push(DecisionRecord {
                model: model.to_owned(),
                ..DecisionRecord::default()
            });
        }
        let pages = Pages {
            metrics: Arc::new(|page| {
                page.value(super::super::family::Kind::Gauge, "g", "G.", 1);
            }),
            status: Arc::new(StatusView::default),
            plugins: Arc::new(|| json!([{ "name": "queue-scorer" }])),
            decisions,
        };
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(serve(listener, pages, std::future::pending()));
        // Whoever comes first installs it; that it is there already is as good.
        let _ = rustls::crypto::ring::default_provider().install_default();
        Self {
            address,
            client: reqwest::Client::new(),
        }
    }

    async fn get(&self, path: &str, accept: &str) -> (String, HeaderMap) {
        let url = format!("http://{}{path}", self.address);
        let request = self.client.get(url).header("accept", accept);
        let response = request.send().await.unwrap();
        assert_eq!(response.status(), 200, "{path}");
        let headers = response.headers().clone();
        (response.text().await.unwrap(), headers)
    }
}

#[tokio::test]
async fn each_path_serves_its_page() {
    let served = Served::start().await;
    let kind = |headers: &HeaderMap| {
        headers
            .get(CONTENT_TYPE)
            .unwrap()
            .to_str()
            .unwrap()
            .to_owned()
    };
    let (text, headers) = served.get("/metrics", "*/*").await;
    assert_eq!(text, "# HELP g G.\n# TYPE g gauge\ng 1\n");
    assert_eq!(kind(&headers), TEXT_FORMAT);
    let (text, _) = served.get("/healthz", "*/*").await;
    assert_eq!(text, "ok");
    let (text, headers) = served.get("/", "text/html").await;
    assert!(text.starts_with("<!DOCTYPE html>"));
    assert_eq!(headers.get("content-security-policy").unwrap(), POLICY);
    let (text, _) = served.get("/debug/plugins/state", "*/*").await;
    assert_eq!(text, r#"[{"name":"queue-scorer"}]"#);
}

#[tokio::test]
async fn the_script_gets_parts_and_everybody_else_json() {
    let served = Served::start().await;
    let (text, _) = served.get("/debug/status", "text/html").await;
    assert!(text.starts_with("<section id=\"problems\""));
    for accept in ["*/*", "text/html,application/xhtml+xml,*/*;q=0.8"] {
        let (text, _) = served.get("/debug/status", accept).await;
        let json: Value = serde_json::from_str(&text).unwrap();
        assert_eq!(json["problems"], json!([]));
    }
}

#[tokio::test]
async fn decisions_are_listed_newest_first_by_limit_and_model() {
    let served = Served::start().await;
    let models = async |query: &str| {
        let (text, _) = served.get(&format!("/debug/decisions{query}"), "*/*").await;
        let json: Value = serde_json::from_str(&text).unwrap();
        let models = json["decisions"].as_array().unwrap().iter();
        models
            .map(|one| one["model"].as_str().unwrap().to_owned())
            .collect::<Vec<_>>()
    };
    assert_eq!(models("").await, ["b", "a"]);
    assert_eq!(models("?limit=1").await, ["b"]);
    assert_eq!(models("?model=a").await, ["a"]);
    assert_eq!(models("?model=c").await, Vec::<String>::new());
}
