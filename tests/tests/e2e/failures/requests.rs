//! Requests that are wrong, and what is said to them: by epp where it must read them, by the worker for the rest.

use anyhow::Result;
use bytes::Bytes;
use pointsman_loadtest::stack::{MODEL_NAME, Stack, StackOptions};
use pointsman_tests::chat::{Chat, printable};
use pointsman_tests::upstream::Upstream;
use pointsman_tests::witness::Witness;
use serde_json::json;

#[tokio::test]
async fn what_epp_cannot_read_is_a_bad_request() -> Result<()> {
    let echo = Upstream::echo().await?;
    let stack = Stack::start(StackOptions::new().workers(0).endpoint(echo.address())).await?;
    for body in ["no healthy upstream", "{\"model\":\"a\"", "[1,2]"] {
        let response = stack
            .client()
            .post("/v1/chat/completions")
            .body(body)
            .send()
            .await?;
        assert_eq!(response.status, 400, "{body:?}");
        let text = response.text().await?;
        assert!(
            text.starts_with("inference error: BadRequest - "),
            "{body:?}: {text:?}"
        );
    }
    for body in [
        "{\"prompt\":\"hello world\"}",
        "{\"messages\":[{\"role\":\"user\",\"content\":\"a\"}]}",
    ] {
        let response = stack
            .client()
            .post("/v1/completions")
            .body(body)
            .send()
            .await?;
        assert_eq!(response.status, 400, "{body:?}");
        let expected = "inference error: BadRequest - model not found in request body";
        assert_eq!(response.text().await?, expected, "{body:?}");
    }
    assert!(
        echo.requests().is_empty(),
        "a refused request reached an endpoint"
    );
    let chat = Chat::new().user("A good one.");
    let response = stack.post_chat(&chat).send().await?;
    assert_eq!(response.status, 200);
    Ok(())
}

#[tokio::test]
async fn a_body_past_the_limit_is_refused() -> Result<()> {
    const LIMIT_BYTES: usize = 1 << 20;
    let echo = Upstream::echo().await?;
    let options = StackOptions::new().workers(0).endpoint(echo.address());
    let limit = format!("--max-request-body-bytes={LIMIT_BYTES}");
    let stack = Stack::start(options.epp_flag(limit)).await?;
    let frame = json!({"model": MODEL_NAME, "prompt": ""}).to_string().len();
    let body_of = |bytes: usize| {
        let body = json!({"model": MODEL_NAME, "prompt": printable(bytes - frame)});
        Bytes::from(body.to_string())
    };
    let post = || stack.client().post("/v1/completions");
    let allowed = body_of(LIMIT_BYTES);
    assert_eq!(allowed.len(), LIMIT_BYTES);
    assert_eq!(
        post().body(allowed).send().await?.status,
        200,
        "exactly the limit"
    );
    let past = body_of(LIMIT_BYTES + 1);
    for request in [post().body(past.clone()), post().chunks(vec![past])] {
        let response = request.send().await?;
        assert_eq!(response.status, 413);
        assert!(response.text().await?.contains(&LIMIT_BYTES.to_string()));
    }
    assert_eq!(echo.requests().len(), 1);
    Ok(())
}

/// epp does not know which models exist; the worker does, and its answer must pass unchanged.
#[tokio::test]
async fn an_unknown_model_is_the_workers_404() -> Result<()> {
    let stack = Stack::start(StackOptions::new()).await?;
    let chat = Chat::new()
        .user("Who are you?")
        .set("model", "no-such-model");
    let response = stack.post_chat(&chat).send().await?;
    assert_eq!(response.status, 404);
    let error = &response.json().await?["error"];
    assert_eq!(error["code"], 404);
    assert_eq!(error["type"], "NotFoundError");
    assert!(
        error["message"]
            .as_str()
            .is_some_and(|text| text.contains("no-such-model")),
        "{error}"
    );
    Ok(())
}
