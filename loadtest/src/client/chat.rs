//! A streaming chat client that takes the times where a user feels them.
//!
//! Time to first token (TTFT) runs from the moment the request is handed to the connection pool to the arrival of
//! the first chunk with text in it. Chunks without text (role, usage) do not count: they say nothing to a reader.
//! Which worker served comes from the response header [`SERVED_BY`], which the Envoy templates add.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use bytes::Bytes;
use http::{Request, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use serde::Serialize;

use super::HttpClient;
use super::stream::AnswerStream;

/// Response header with the `ip:port` of the worker that served; `response_headers_to_add` of the templates.
pub const SERVED_BY: &str = "x-served-by";
/// The longest error body that is read.
const ERROR_BYTES_MAX: usize = 64 << 10;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    System,
    User,
    Assistant,
}

/// One message of a chat, as the API takes it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Message {
    pub role: Role,
    pub content: String,
}

impl Message {
    pub fn new(role: Role, content: impl Into<String>) -> Self {
        Self {
            role,
            content: content.into(),
        }
    }
}

/// How an answer is asked for.
#[derive(Clone, Debug)]
pub struct ChatOptions {
    pub model: String,
    pub max_tokens: u32,
    pub temperature: f32,
    /// The whole exchange ends within this time or fails.
    pub timeout: Duration,
}

/// One finished answer.
#[derive(Clone, Debug)]
pub struct Answer {
    pub text: String,
    pub finish_reason: String,
    /// From sending to the first chunk with text. The whole duration where the answer has no text at all.
    pub ttft: Duration,
    /// From sending to the end of the stream.
    pub total: Duration,
    pub prompt_tokens: u32,
    pub completion_tokens: u32,
    /// Prompt tokens whose keys and values the worker had in its cache; at most `prompt_tokens`.
    pub cached_tokens: u32,
    /// `ip:port` of the worker, where the gateway says so.
    pub served_by: Option<String>,
}

/// Sends chats to one gateway or worker. Clones share connections.
#[derive(Clone, Debug)]
pub struct ChatClient {
    http: HttpClient,
    url: String,
}

impl ChatClient {
    /// `base_url` as in `http://127.0.0.1:8080`, without `/v1`.
    pub fn new(http: HttpClient, base_url: &str) -> Self {
        Self {
            http,
            url: format!("{base_url}/v1/chat/completions"),
        }
    }

    /// Sends one chat with `stream: true` and reads the answer to its end.
    ///
    /// An error unless the status is 200 and the stream ends as an OpenAI stream must: a finish reason, usage, and
    /// `[DONE]`. A stream that breaks off is thereby never taken for a short answer.
    pub async fn send(&self, messages: &[Message], options: &ChatOptions) -> Result<Answer> {
        let request = self.build(messages, options)?;
        tokio::time::timeout(options.timeout, self.exchange(request))
            .await
            .with_context(|| format!("no answer within {:?}", options.timeout))?
    }

    fn build(&self, messages: &[Message], options: &ChatOptions) -> Result<Request<Full<Bytes>>> {
        let body = serde_json::json!({
            "model": options.model,
            "messages": messages,
            "max_tokens": options.max_tokens,
            "temperature": options.temperature,
            "stream": true,
            "stream_options": {"include_usage": true},
        });
        Request::post(&self.url)
            .header(header::CONTENT_TYPE, "application/json")
            .body(Full::from(body.to_string()))
            .with_context(|| format!("bad URL {}", self.url))
    }

    async fn exchange(&self, request: Request<Full<Bytes>>) -> Result<Answer> {
        let sent = Instant::now();
        let response = self.http.request(request).await.context("request failed")?;
        let (head, body) = response.into_parts();
        let served_by = head
            .headers
            .get(SERVED_BY)
            .and_then(|value| value.to_str().ok());
        let served_by = served_by.map(str::to_owned);
        if head.status != http::StatusCode::OK {
            let status = head.status;
            bail!("status {status}: {}", error_text(body).await);
        }
        let mut stream = AnswerStream::default();
        let first_token = read_stream(body, &mut stream).await.with_context(|| {
            format!(
                "answer of {} failed",
                served_by.as_deref().unwrap_or("unknown worker")
            )
        })?;
        let ended = Instant::now();
        finish(stream, sent, first_token.unwrap_or(ended), ended, served_by)
    }
}

/// Feeds the body into `stream`; returns when the first text came.
async fn read_stream(mut body: Incoming, stream: &mut AnswerStream) -> Result<Option<Instant>> {
    let mut first_token = None;
    while let Some(frame) = body.frame().await {
        let frame = frame.context("stream broke off")?;
        let Some(piece) = frame.data_ref() else {
            continue;
        };
        if stream.push(piece)? {
            first_token.get_or_insert_with(Instant::now);
        }
    }
    Ok(first_token)
}

async fn error_text(body: Incoming) -> String {
    match Limited::new(body, ERROR_BYTES_MAX).collect().await {
        Ok(body) => String::from_utf8_lossy(&body.to_bytes()).trim().to_owned(),
        Err(error) => format!("(unreadable body: {error})"),
    }
}

/// The answer, which must have ended as an OpenAI stream with usage does.
fn finish(
    stream: AnswerStream,
    sent: Instant,
    first_token: Instant,
    ended: Instant,
    served_by: Option<String>,
) -> Result<Answer> {
    stream.check_whole()?;
    let prompt_tokens = stream
        .prompt_tokens()
        .context("stream ended without usage")?;
    let cached_tokens = stream.cached_tokens().unwrap_or(0);
    ensure!(
        cached_tokens <= prompt_tokens,
        "{cached_tokens} cached of {prompt_tokens} prompt tokens"
    );
    Ok(Answer {
        finish_reason: stream.finish_reason().unwrap_or_default().to_owned(),
        ttft: first_token - sent,
        total: ended - sent,
        prompt_tokens: u32::try_from(prompt_tokens)?,
        completion_tokens: u32::try_from(stream.answer_tokens())?,
        cached_tokens: u32::try_from(cached_tokens)?,
        served_by,
        text: stream.text,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const STREAM: &str = concat!(
        r#"data: {"id":"1","choices":[{"index":0,"delta":{"role":"assistant","content":""},"finish_reason":null}],"usage":null}"#,
        "\n\n",
        r#"data: {"id":"1","choices":[{"index":0,"delta":{"content":"A ga"}}]}"#,
        "\n\n",
        r#"data: {"id":"1","choices":[{"index":0,"delta":{"content":"teway."},"finish_reason":"stop"}]}"#,
        "\n\n",
        r#"data: {"id":"1","choices":[],"usage":{"prompt_tokens":40,"completion_tokens":5,"total_tokens":45,"prompt_tokens_details":{"cached_tokens":32}}}"#,
        "\n\ndata: [DONE]\n\n",
    );

    fn read(stream: &str) -> Result<Answer> {
        let mut answer = AnswerStream::default();
        for piece in stream.as_bytes().chunks(7) {
            answer.push(piece)?;
        }
        let sent = Instant::now();
        let (first, ended) = (
            sent + Duration::from_millis(3),
            sent + Duration::from_millis(9),
        );
        finish(answer, sent, first, ended, None)
    }

    #[test]
    fn reads_text_usage_and_times() {
        let answer = read(STREAM).unwrap();
        assert_eq!(answer.text, "A gateway.");
        assert_eq!(answer.finish_reason, "stop");
        assert_eq!((answer.prompt_tokens, answer.completion_tokens), (40, 5));
        assert_eq!(answer.cached_tokens, 32);
        assert_eq!(answer.ttft, Duration::from_millis(3));
        assert_eq!(answer.total, Duration::from_millis(9));
    }

    #[test]
    fn a_stream_that_breaks_off_is_an_error() {
        for (at, _) in STREAM.match_indices("\n\n").take(4) {
            assert!(
                read(&STREAM[..at + 2]).is_err(),
                "accepted the first {at} bytes"
            );
        }
    }

    #[test]
    fn an_error_chunk_is_an_error() {
        let error = read("data: {\"error\":{\"message\":\"out of blocks\"}}\n\n").unwrap_err();
        assert!(format!("{error:#}").contains("out of blocks"));
    }

    #[test]
    fn more_cached_than_prompt_tokens_is_an_error() {
        assert!(read(&STREAM.replace("\"cached_tokens\":32", "\"cached_tokens\":41")).is_err());
    }
}
