//! Token ids from a remote tokenizer: vLLM's render endpoints, for models whose folder is not here.
//!
//! It is what the field's `token-producer` does with `vllm.url`. A local tokenizer is always the
//! better choice: it costs microseconds where this costs an exchange, and it remembers what it
//! encoded. Two bounds keep a slow or absent service from costing the requests: a pick waits for it
//! no longer than the room's deadline, whatever the configured timeout, and a [`Breaker`] stops
//! asking one that fails.
//!
//! Answers come in the shapes that vLLM has had so far: an object with `token_ids`, a list of such
//! objects (one for each prompt, of which the first counts), and the older
//! `[conversation, [{prompt_token_ids}]]`.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use pointsman_proto::prompt::Prompt;
use serde_json::{Value, json};
use tokio::sync::Semaphore;

use super::breaker::Breaker;
use super::encode::Unavailable;
use crate::clock::Clock;

/// Exchanges at a time; one more is refused as [`Unavailable::Busy`].
const IN_FLIGHT_MAX: usize = 64;
/// Larger answers are refused. A million ids take some 7 MB.
const ANSWER_BYTES_MAX: usize = 32 << 20;

/// Where the remote tokenizer is.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RenderService {
    /// `http://host:port`, without a slash at the end.
    pub url: String,
    /// The model named in render requests; empty = the request's own.
    pub model: String,
    /// The longest exchange.
    pub timeout: Duration,
}

/// A client of the service.
#[derive(Debug)]
pub struct RenderClient {
    service: RenderService,
    client: reqwest::Client,
    in_flight: Arc<Semaphore>,
    breaker: Mutex<Breaker>,
    clock: Clock,
}

impl RenderClient {
    /// Connects to nothing yet. Fails where the process's TLS set-up does.
    pub fn new(service: RenderService, clock: Clock) -> Result<Self, reqwest::Error> {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let client = reqwest::Client::builder()
            .timeout(service.timeout)
            .connect_timeout(service.timeout)
            .no_proxy()
            .redirect(reqwest::redirect::Policy::none())
            .build()?;
        Ok(Self {
            service,
            client,
            in_flight: Arc::new(Semaphore::new(IN_FLIGHT_MAX)),
            breaker: Mutex::default(),
            clock,
        })
    }

    /// The token ids of a prompt, unless they take longer than `deadline`.
    pub async fn encode(
        &self,
        model: &str,
        prompt: &Prompt,
        deadline: Duration,
    ) -> Result<Arc<[u32]>, Unavailable> {
        let _permit = self
            .in_flight
            .try_acquire()
            .map_err(|_| Unavailable::Busy)?;
        if !self.breaker.lock().allows(self.clock.now_ms()) {
            return Err(Unavailable::RemoteDown);
        }
        // Dropped with the request, it must not leave a probe open.
        let mut verdict = Verdict {
            client: self,
            is_good: false,
        };
        let asked = tokio::time::timeout(deadline, self.ask(model, prompt)).await;
        let answered = asked.unwrap_or(Err(Unavailable::Deadline));
        verdict.is_good = match &answered {
            Ok(_) => true,
            // A prompt that the service refuses says nothing against the service.
            Err(Unavailable::Failed(_)) => true,
            Err(_) => false,
        };
        answered
    }

    async fn ask(&self, model: &str, prompt: &Prompt) -> Result<Arc<[u32]>, Unavailable> {
        let model = match self.service.model.as_str() {
            "" => model,
            named => named,
        };
        let (path, body) = match prompt {
            Prompt::Tokens(tokens) => return Ok(Arc::from(tokens.as_slice())),
            Prompt::Text(text) => (
                "/v1/completions/render",
                json!({"model": model, "prompt": text}),
            ),
            Prompt::Chat(chat) => {
                let mut body = json!({
                    "model": model,
                    "messages": chat.messages,
                    "add_generation_prompt": chat.add_generation_prompt,
                });
                if let Some(tools) = &chat.tools {
                    body["tools"] = tools.clone();
                }
                if let Some(arguments) = &chat.template_kwargs {
                    body["chat_template_kwargs"] = Value::Object(arguments.clone());
                }
                ("/v1/chat/completions/render", body)
            }
        };
        let url = format!("{}{path}", self.service.url);
        let sent = self.client.post(url).json(&body).send().await;
        let mut response = sent.map_err(|error| unreachable_service(&error))?;
        let status = response.status().as_u16();
        if (400..500).contains(&status) {
            return Err(Unavailable::Failed(format!(
                "the render service answered {status}"
            )));
        }
        if status != 200 {
            return Err(Unavailable::Remote(format!("status {status}")));
        }
        let mut answer = Vec::new();
        while let Some(chunk) = response
            .chunk()
            .await
            .map_err(|error| unreachable_service(&error))?
        {
            if answer.len() + chunk.len() > ANSWER_BYTES_MAX {
                return Err(Unavailable::Remote("the answer is too large".to_owned()));
            }
            answer.extend_from_slice(&chunk);
        }
        token_ids(&answer)
    }
}

/// Tells the breaker how the exchange went, also when nobody waited for its end.
struct Verdict<'a> {
    client: &'a RenderClient,
    is_good: bool,
}

impl Drop for Verdict<'_> {
    fn drop(&mut self) {
        let mut breaker = self.client.breaker.lock();
        if self.is_good {
            breaker.succeeded();
        } else {
            breaker.failed(self.client.clock.now_ms());
        }
    }
}

fn unreachable_service(error: &reqwest::Error) -> Unavailable {
    if error.is_timeout() {
        Unavailable::Deadline
    } else {
        Unavailable::Remote(error.to_string())
    }
}

fn token_ids(answer: &[u8]) -> Result<Arc<[u32]>, Unavailable> {
    let value: Value = serde_json::from_slice(answer)
        .map_err(|error| Unavailable::Remote(format!("the answer is no JSON: {error}")))?;
    let found = match &value {
        Value::Array(list) => match list.as_slice() {
            [_, Value::Array(prompts)] => prompts.first().and_then(ids_of),
            list => list.first().and_then(ids_of),
        },
        other => ids_of(other),
    };
    found.ok_or_else(|| Unavailable::Remote("the answer has no token ids".to_owned()))
}

fn ids_of(prompt: &Value) -> Option<Arc<[u32]>> {
    let ids = prompt
        .get("token_ids")
        .or_else(|| prompt.get("prompt_token_ids"))?;
    let ids = ids.as_array()?.iter();
    ids.map(|id| id.as_u64().and_then(|id| u32::try_from(id).ok()))
        .collect()
}

#[cfg(test)]
mod tests;
