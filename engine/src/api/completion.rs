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
use pointsman_proto::prompt::Prompt;
use tracing::debug;

use super::choice::{Delta, End};
use super::error::ApiError;
use super::generate::{Generation, Head, PRIORITY_HEADER, header};
use super::logprobs::TokenNames;
use super::sampling::{Checked, Fields};
use super::sse::{self, Answer};
use super::{Api, body, prompt};
use crate::sample::TokenLogprob;

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
    debug!(
        id = prepared.head.id,
        prompts = prepared.prompts.len(),
        choices = prepared.checked.n,
        "completion"
    );
    let answer = CompletionAnswer::new(&api, &prepared);
    let Prepared {
        head,
        prompts,
        checked,
        ..
    } = prepared;
    let generation = Generation::submit(&api, &head, prompts, &checked)?;
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
        let checked = fields.check(&api.limits(), header(headers, PRIORITY_HEADER))?;
        let truncation = checked.truncation(api.engine.max_model_len())?;
        let wants_echo = request.echo.unwrap_or(false);
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
            let tokens = prompt::encode(&api.encoder, &prompt, add_special_tokens, truncation)?;
            if wants_echo {
                echo.push(match prompt {
                    Prompt::Text(text) if truncation.is_none() => text,
                    _ => decoded(api, &tokens),
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

/// The text of a prompt that came as token ids, or was cut to size.
fn decoded(api: &Api, tokens: &[u32]) -> String {
    let text = api.encoder.tokenizer().decode(tokens, true);
    text.unwrap_or_default()
}

/// The answers of one completion request.
struct CompletionAnswer {
    names: TokenNames,
    head: Head,
    /// The prompts, if the answer shows their ids or log probabilities.
    prompts: Vec<ShownPrompt>,
    choices_per_prompt: usize,
    logprobs: bool,
    /// The lists of log probabilities begin with the prompt's.
    echo: bool,
    /// The answer has the prompt's log probabilities in a list of their own.
    prompt_logprobs: bool,
    return_token_ids: bool,
    choices: Vec<CompletionState>,
}

/// A prompt that shows in the answer.
struct ShownPrompt {
    tokens: Vec<u32>,
    /// Of each token but the first; brought by its first choice.
    logprobs: Vec<TokenLogprob>,
}

/// One choice so far.
#[derive(Default)]
struct CompletionState {
    /// A chunk was sent.
    opened: bool,
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
    fn new(api: &Api, prepared: &Prepared) -> Self {
        let (checked, echo) = (&prepared.checked, &prepared.echo);
        let per_prompt = checked.n.max(1);
        let choices = (0..prepared.prompts.len() * checked.n).map(|index| CompletionState {
            pending: echo.get(index / per_prompt).cloned().unwrap_or_default(),
            ..CompletionState::default()
        });
        let echoes_logprobs = !echo.is_empty() && checked.logprobs;
        let shows = checked.return_token_ids || checked.prompt_logprobs || echoes_logprobs;
        let prompts = prepared.prompts.iter().filter(|_| shows);
        let prompts = prompts.map(|tokens| ShownPrompt {
            tokens: tokens.clone(),
            logprobs: Vec::new(),
        });
        Self {
            names: TokenNames {
                encoder: Arc::clone(&api.encoder),
                as_ids: checked.tokens_as_token_ids,
            },
            head: prepared.head.clone(),
            prompts: prompts.collect(),
            choices_per_prompt: per_prompt,
            logprobs: checked.logprobs,
            echo: echoes_logprobs,
            prompt_logprobs: checked.prompt_logprobs,
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

    /// Appends to the lists of a choice what a delta adds to them.
    fn list(&mut self, index: usize, delta: &mut Delta) {
        let logprobs = std::mem::take(&mut delta.prompt_logprobs);
        let prompt = self.prompts.get_mut(index / self.choices_per_prompt);
        if let Some(prompt) = prompt.filter(|_| !logprobs.is_empty()) {
            prompt.logprobs = logprobs;
        }
        if let (Some(state), Some(token), Some(logprob)) =
            (self.choices.get_mut(index), delta.token, &delta.logprob)
        {
            let lists = &mut state.logprobs;
            self.names
                .completion(token, Some(logprob), &mut state.offset, lists);
        }
    }

    /// The lists of an echoed prompt, which go before those of the answer.
    fn echoed(&self, index: usize, offset: &mut u32) -> CompletionLogprobs {
        let mut lists = CompletionLogprobs::default();
        let prompt = self.prompts.get(index / self.choices_per_prompt);
        if let Some(prompt) = prompt.filter(|_| self.echo) {
            let (tokens, logprobs) = (&prompt.tokens, &prompt.logprobs);
            self.names.echo(tokens, logprobs, offset, &mut lists);
        }
        lists
    }

    /// The ids of a choice's prompt, where asked for.
    fn prompt_token_ids(&self, index: usize) -> Option<Vec<u32>> {
        let prompt = self.prompts.get(index / self.choices_per_prompt)?;
        self.return_token_ids.then(|| prompt.tokens.clone())
    }
}

/// Appends the lists of `more`, whose text begins `offset` characters later than they say.
fn append(lists: &mut CompletionLogprobs, more: CompletionLogprobs, offset: u32) {
    let offsets = more.text_offset.iter().map(|at| at + offset);
    lists.text_offset.extend(offsets);
    lists.tokens.extend(more.tokens);
    lists.token_logprobs.extend(more.token_logprobs);
    lists.top_logprobs.extend(more.top_logprobs);
}

impl Answer for CompletionAnswer {
    type Chunk = CompletionChunk;
    type Whole = CompletionResponse;

    fn chunks(&mut self, index: usize, mut delta: Delta, events: &mut Vec<CompletionChunk>) {
        let Some(state) = self.choices.get_mut(index) else {
            return;
        };
        let first = !std::mem::replace(&mut state.opened, true);
        let mut text = std::mem::take(&mut state.pending);
        text.push_str(&delta.text);
        let mut logprobs = CompletionLogprobs::default();
        if first && self.echo {
            if let Some(prompt) = self.prompts.get_mut(index / self.choices_per_prompt) {
                prompt.logprobs = std::mem::take(&mut delta.prompt_logprobs);
            }
            let mut offset = 0;
            logprobs = self.echoed(index, &mut offset);
            if let Some(state) = self.choices.get_mut(index) {
                state.offset = offset;
            }
        }
        self.list(index, &mut delta);
        let listed = self.choices.get_mut(index).map(|state| &mut state.logprobs);
        append(
            &mut logprobs,
            listed.map(std::mem::take).unwrap_or_default(),
            0,
        );
        let (finish_reason, stop_reason) = super::reasons(delta.end);
        events.push(self.chunk(vec![CompletionChoice {
            index: index as u32,
            text,
            logprobs: self.logprobs.then_some(logprobs),
            finish_reason,
            stop_reason,
            token_ids: self.return_token_ids.then(|| delta.token.into_iter().collect()),
            prompt_logprobs: None,
            prompt_token_ids: first.then(|| self.prompt_token_ids(index)).flatten(),
        }]));
    }

    fn only_text(&self, delta: &Delta) -> bool {
        !self.return_token_ids && !self.logprobs && delta.end.is_none()
    }

    fn merge(into: &mut CompletionChunk, later: CompletionChunk) {
        for (choice, later) in into.choices.iter_mut().zip(later.choices) {
            choice.text.push_str(&later.text);
            if let (Some(logprobs), Some(more)) = (&mut choice.logprobs, later.logprobs) {
                append(logprobs, more, 0);
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

    fn add(&mut self, index: usize, mut delta: Delta) {
        self.list(index, &mut delta);
        let Some(state) = self.choices.get_mut(index) else {
            return;
        };
        state.text.push_str(&delta.text);
        state.token_ids.extend(delta.token);
        state.end = delta.end;
    }

    fn whole(mut self, usage: Usage) -> CompletionResponse {
        let states = std::mem::take(&mut self.choices);
        let choice = |(index, state): (usize, CompletionState)| {
            let (finish_reason, stop_reason) = super::reasons(state.end);
            let mut offset = 0;
            let mut logprobs = self.echoed(index, &mut offset);
            append(&mut logprobs, state.logprobs, offset);
            let prompt = self.prompts.get(index / self.choices_per_prompt);
            let prompt_logprobs = prompt.filter(|_| self.prompt_logprobs);
            CompletionChoice {
                index: index as u32,
                text: state.pending + &state.text,
                logprobs: self.logprobs.then_some(logprobs),
                finish_reason,
                stop_reason,
                token_ids: self.return_token_ids.then_some(state.token_ids),
                prompt_logprobs: prompt_logprobs
                    .map(|prompt| self.names.prompt(&prompt.tokens, &prompt.logprobs)),
                prompt_token_ids: self.prompt_token_ids(index),
            }
        };
        let choices: Vec<CompletionChoice> = states.into_iter().enumerate().map(choice).collect();
        CompletionResponse {
            choices,
            id: self.head.id,
            object: CompletionResponse::OBJECT.to_owned(),
            created: self.head.created,
            model: self.head.model,
            usage,
        }
    }
}
