//! `POST /v1/completions`.
//!
//! Several prompts in one request are answered as one: choice `p * n + c` is choice `c` of prompt `p`.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::State;
use axum::http::HeaderMap;
use axum::response::Response;
use pointsman_proto::openai::{
    CompletionChoice, CompletionChunk, CompletionLogprobs, CompletionRequest, CompletionResponse,
    Usage,
};
use pointsman_proto::prompt::{Prompt, PromptEncoder};
use serde_json::{Map, Value};
use tracing::debug;

use super::choice::{Delta, End};
use super::error::ApiError;
use super::generate::{Generation, Head, PRIORITY_HEADER, header};
use super::sampling::{Checked, Fields};
use super::sse::{self, Answer};
use super::{Api, LOGPROB_MIN, body};
use crate::text::token_text;

/// Prompts of one request.
const PROMPTS_MAX: usize = 128;

/// Answers a completion request.
pub(super) async fn handle(
    State(api): State<Arc<Api>>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, ApiError> {
    api.refuse_when_closed()?;
    let body = body::read(&headers, body, api.config.body_bytes_max).await?;
    let shared = Arc::clone(&api);
    let prepared = api
        .intake
        .run(body.len(), move || Prepared::new(&shared, &headers, &body))
        .await?;
    let Prepared {
        head,
        prompts,
        echo,
        checked,
    } = prepared;
    debug!(
        id = head.id,
        prompts = prompts.len(),
        choices = checked.n,
        "completion"
    );
    let generation = Generation::submit(&api, &head, prompts, &checked)?;
    let choices = generation.choices();
    let answer = CompletionAnswer::new(Arc::clone(&api.encoder), head, &checked, &echo, choices);
    sse::respond(generation, answer, checked.stream).await
}

/// A request, as far as it goes without the engine.
pub(super) struct Prepared {
    pub(super) head: Head,
    pub(super) prompts: Vec<Vec<u32>>,
    /// The text of each prompt if the answer is to begin with it, or nothing.
    echo: Vec<String>,
    pub(super) checked: Checked,
}

impl Prepared {
    pub(super) fn new(api: &Api, headers: &HeaderMap, body: &[u8]) -> Result<Self, ApiError> {
        let request: CompletionRequest = body::parse(body)?;
        body::refuse_unsupported(body)?;
        let model = api.model(request.model.as_deref())?;
        let fields = Fields::of_completion(&request);
        let checked = fields.check(&api.config.defaults, header(headers, PRIORITY_HEADER))?;
        let wants_echo = request.echo.unwrap_or(false);
        if wants_echo && checked.logprobs {
            let problem = "together with logprobs is not supported by this worker";
            return Err(ApiError::field("echo", problem));
        }
        let asked = request.prompt()?;
        if asked.len() > PROMPTS_MAX {
            let problem = format!(
                "must hold at most {PROMPTS_MAX} prompts, got {}",
                asked.len()
            );
            return Err(ApiError::field("prompt", problem));
        }
        let add_special_tokens = request.add_special_tokens.unwrap_or(true);
        let mut prompts = Vec::with_capacity(asked.len());
        let mut echo = Vec::new();
        for prompt in asked {
            let tokens = match &prompt {
                Prompt::Text(text) => api.encoder.encode_text(text, add_special_tokens)?,
                Prompt::Tokens(_) | Prompt::Chat(_) => api.encoder.encode(&prompt)?,
            };
            if wants_echo {
                echo.push(match prompt {
                    Prompt::Text(text) => text,
                    _ => api
                        .encoder
                        .tokenizer()
                        .decode(&tokens, true)
                        .unwrap_or_default(),
                });
            }
            prompts.push(tokens);
        }
        let head = Head::new("cmpl", headers, request.request_id.as_deref(), model);
        Ok(Self {
            head,
            prompts,
            echo,
            checked,
        })
    }
}

/// The answers of one completion request.
struct CompletionAnswer {
    encoder: Arc<PromptEncoder>,
    head: Head,
    logprobs: bool,
    return_token_ids: bool,
    choices: Vec<CompletionState>,
}

/// One choice so far.
#[derive(Default)]
struct CompletionState {
    /// Text that goes before the next addition: the echoed prompt, until it is sent.
    pending: String,
    /// Characters of the tokens whose log probabilities were given.
    offset: u32,
    text: String,
    token_ids: Vec<u32>,
    logprobs: CompletionLogprobs,
    end: Option<End>,
}

impl CompletionAnswer {
    fn new(
        encoder: Arc<PromptEncoder>,
        head: Head,
        checked: &Checked,
        echo: &[String],
        choices: usize,
    ) -> Self {
        let choices = (0..choices).map(|index| CompletionState {
            pending: echo
                .get(index / checked.n.max(1))
                .cloned()
                .unwrap_or_default(),
            ..CompletionState::default()
        });
        Self {
            encoder,
            head,
            logprobs: checked.logprobs,
            return_token_ids: checked.return_token_ids,
            choices: choices.collect(),
        }
    }

    fn chunk(&self, choices: Vec<CompletionChoice>) -> CompletionChunk {
        CompletionChunk {
            id: self.head.id.clone(),
            object: CompletionResponse::OBJECT.to_owned(),
            created: self.head.created,
            model: self.head.model.clone(),
            choices,
            usage: None,
        }
    }

    /// The delta's token in the form of parallel lists of one entry, or empty lists.
    fn logprobs_of(&mut self, index: usize, delta: &Delta) -> CompletionLogprobs {
        let tokenizer = self.encoder.tokenizer();
        let mut lists = CompletionLogprobs::default();
        let (Some(token), Some(logprob)) = (delta.token, &delta.logprob) else {
            return lists;
        };
        let Some(state) = self.choices.get_mut(index) else {
            return lists;
        };
        let text = token_text(tokenizer, token);
        let mut top = Map::new();
        for (token, logprob) in &logprob.top {
            top.insert(
                token_text(tokenizer, *token),
                Value::from(logprob.max(LOGPROB_MIN)),
            );
        }
        let sampled = logprob.logprob.max(LOGPROB_MIN);
        top.entry(text.clone())
            .or_insert_with(|| Value::from(sampled));
        lists.text_offset.push(state.offset);
        state.offset += text.chars().count() as u32;
        lists.tokens.push(text);
        lists.token_logprobs.push(Some(sampled));
        lists.top_logprobs.push(Some(top));
        lists
    }
}

impl Answer for CompletionAnswer {
    type Chunk = CompletionChunk;
    type Whole = CompletionResponse;

    fn chunks(&mut self, index: usize, delta: Delta, events: &mut Vec<CompletionChunk>) {
        let logprobs = self.logprobs.then(|| self.logprobs_of(index, &delta));
        let mut text = match self.choices.get_mut(index) {
            Some(state) => std::mem::take(&mut state.pending),
            None => return,
        };
        text.push_str(&delta.text);
        let (finish_reason, stop_reason) = super::reasons(delta.end);
        events.push(self.chunk(vec![CompletionChoice {
            index: index as u32,
            text,
            logprobs,
            finish_reason,
            stop_reason,
            token_ids: self.return_token_ids.then(|| delta.token.into_iter().collect()),
        }]));
    }

    fn only_text(&self, delta: &Delta) -> bool {
        !self.return_token_ids && !self.logprobs && delta.end.is_none()
    }

    fn merge(into: &mut CompletionChunk, later: CompletionChunk) {
        for (choice, later) in into.choices.iter_mut().zip(later.choices) {
            choice.text.push_str(&later.text);
            if let (Some(logprobs), Some(more)) = (&mut choice.logprobs, later.logprobs) {
                logprobs.text_offset.extend(more.text_offset);
                logprobs.tokens.extend(more.tokens);
                logprobs.token_logprobs.extend(more.token_logprobs);
                logprobs.top_logprobs.extend(more.top_logprobs);
            }
            if let (Some(ids), Some(more)) = (&mut choice.token_ids, later.token_ids) {
                ids.extend(more);
            }
            choice.finish_reason = later.finish_reason;
            choice.stop_reason = later.stop_reason;
        }
    }

    fn usage_chunk(&self) -> CompletionChunk {
        self.chunk(Vec::new())
    }

    fn usage_of(chunk: &mut CompletionChunk) -> &mut Option<Usage> {
        &mut chunk.usage
    }

    fn add(&mut self, index: usize, delta: Delta) {
        let logprobs = self.logprobs_of(index, &delta);
        let Some(state) = self.choices.get_mut(index) else {
            return;
        };
        state.text.push_str(&delta.text);
        state.token_ids.extend(delta.token);
        state.logprobs.text_offset.extend(logprobs.text_offset);
        state.logprobs.tokens.extend(logprobs.tokens);
        state
            .logprobs
            .token_logprobs
            .extend(logprobs.token_logprobs);
        state.logprobs.top_logprobs.extend(logprobs.top_logprobs);
        state.end = delta.end;
    }

    fn whole(self, usage: Usage) -> CompletionResponse {
        let (logprobs, return_token_ids) = (self.logprobs, self.return_token_ids);
        let choices = self.choices.into_iter().enumerate().map(|(index, state)| {
            let (finish_reason, stop_reason) = super::reasons(state.end);
            CompletionChoice {
                index: index as u32,
                text: state.pending + &state.text,
                logprobs: logprobs.then_some(state.logprobs),
                finish_reason,
                stop_reason,
                token_ids: return_token_ids.then_some(state.token_ids),
            }
        });
        CompletionResponse {
            choices: choices.collect(),
            id: self.head.id,
            object: CompletionResponse::OBJECT.to_owned(),
            created: self.head.created,
            model: self.head.model,
            usage,
        }
    }
}
