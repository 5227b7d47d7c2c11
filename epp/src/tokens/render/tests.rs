//! The client against a service in this process.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use axum::Router;
use axum::extract::State;
use axum::routing::post;
use pointsman_proto::prompt::ChatPrompt;

use super::*;

/// From path and body to status and answer.
type Answer = dyn Fn(&str, Value) -> (u16, String) + Send + Sync;

/// What the service answers, and how often it was asked.
#[derive(Clone)]
struct Service {
    answer: Arc<Answer>,
    asked: Arc<AtomicUsize>,
}

async fn service(
    answer: impl Fn(&str, Value) -> (u16, String) + Send + Sync + 'static,
) -> (SocketAddr, Arc<AtomicUsize>) {
    let asked = Arc::new(AtomicUsize::new(0));
    let state = Service {
        answer: Arc::new(answer),
        asked: Arc::clone(&asked),
    };
    let handler = |State(service): State<Service>,
                   uri: axum::http::Uri,
                   body: axum::Json<Value>| async move {
        service.asked.fetch_add(1, Relaxed);
        let (status, text) = (service.answer)(uri.path(), body.0);
        (axum::http::StatusCode::from_u16(status).unwrap(), text)
    };
    let router = Router::new()
        .route("/v1/completions/render", post(handler))
        .route("/v1/chat/completions/render", post(handler))
        .with_state(state);
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(axum::serve(listener, router).into_future());
    (address, asked)
}

fn client(address: SocketAddr, model: &str) -> RenderClient {
    let service = RenderService {
        url: format!("http://{address}"),
        model: model.to_owned(),
        timeout: Duration::from_secs(5),
    };
    RenderClient::new(service, Clock::manual().0).unwrap()
}

const LONG: Duration = Duration::from_secs(5);

fn text() -> Prompt {
    Prompt::Text("hello".to_owned())
}

#[tokio::test]
async fn every_shape_of_answer_is_read() {
    for answer in [
        r#"{"request_id":"r","token_ids":[1,2]}"#,
        r#"[{"token_ids":[1,2]},{"token_ids":[3]}]"#,
        r#"[{"prompt_token_ids":[1,2]}]"#,
        r#"[[{"role":"user"}],[{"prompt_token_ids":[1,2]}]]"#,
    ] {
        let (address, _) = service(move |_, _| (200, answer.to_owned())).await;
        let ids = client(address, "").encode("m", &text(), LONG).await;
        assert_eq!(ids.as_deref(), Ok(&[1, 2][..]), "{answer}");
    }
}

#[tokio::test]
async fn a_conversation_travels_whole_and_under_the_configured_name() {
    let (address, _) = service(|path, body| {
        assert_eq!(path, "/v1/chat/completions/render");
        let expected = json!({
            "model": "base", "messages": [{"role": "user", "content": "hi"}],
            "add_generation_prompt": true, "tools": [{"type": "function"}],
        });
        assert_eq!(body, expected);
        (200, r#"{"token_ids":[7]}"#.to_owned())
    })
    .await;
    let prompt = Prompt::Chat(ChatPrompt {
        messages: json!([{"role": "user", "content": "hi"}]),
        tools: Some(json!([{"type": "function"}])),
        add_generation_prompt: true,
        template_kwargs: None,
    });
    let ids = client(address, "base").encode("tuned", &prompt, LONG).await;
    assert_eq!(ids.as_deref(), Ok(&[7][..]));
}

#[tokio::test]
async fn a_service_that_fails_is_left_alone_and_one_that_refuses_a_prompt_is_not() {
    let (address, asked) = service(|_, _| (500, String::new())).await;
    let failing = client(address, "");
    for _ in 0..5 {
        assert!(failing.encode("m", &text(), LONG).await.is_err());
    }
    assert_eq!(asked.load(Relaxed), 3);

    let (address, asked) = service(|_, _| (400, String::new())).await;
    let refusing = client(address, "");
    for _ in 0..5 {
        let refused = refusing.encode("m", &text(), LONG).await;
        assert!(
            matches!(refused, Err(Unavailable::Failed(_))),
            "{refused:?}"
        );
    }
    assert_eq!(asked.load(Relaxed), 5);
}

#[tokio::test]
async fn nonsense_is_named() {
    for (answer, part) in [
        ("x", "no JSON"),
        ("{}", "no token ids"),
        (r#"{"token_ids":[-1]}"#, "no token ids"),
    ] {
        let (address, _) = service(move |_, _| (200, answer.to_owned())).await;
        let error = client(address, "")
            .encode("m", &text(), LONG)
            .await
            .unwrap_err();
        assert!(error.to_string().contains(part), "{error}");
    }
}

#[tokio::test]
async fn nobody_there_is_an_error_and_ids_need_nobody() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    drop(listener);
    let absent = client(address, "");
    assert!(matches!(
        absent.encode("m", &text(), LONG).await,
        Err(Unavailable::Remote(_))
    ));
    let ids = absent.encode("m", &Prompt::Tokens(vec![4]), LONG).await;
    assert_eq!(ids.as_deref(), Ok(&[4][..]));
}
