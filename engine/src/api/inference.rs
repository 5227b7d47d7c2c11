//! `POST /inference/v1/generate`: token ids in, token ids out.
//!
//! For callers that tokenise themselves, or that had another worker do it (`render`). Sampling parameters have the
//! names that they have in a completion, so they are read and checked as a completion's are; only their default
//! limit differs: what is left of the context, as in vLLM.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::State;
use axum::http::HeaderMap;
use axum::response::Response;
use pointsman_proto::openai::{
    CompletionRequest, GenerateChoice, GenerateChunk, GenerateChunkChoice, GenerateLogprobs,
    GenerateRequest, GenerateResponse, GenerateTokenLogprob, Usage,
};
use pointsman_proto::prompt::{Prompt, PromptEncoder};
use tracing::debug;

use super::choice::{Delta, End};
use super::error::ApiError;
use super::generate::{Generation, Head, PRIORITY_HEADER, header};
use super::logprobs::TokenNames;
use super::sampling::{Checked, Fields};
use super::sse::{self, Answer};
use super::{Api, LOGPROB_MIN, body};
use crate::sample::TokenLogprob;
use crate::text::token_text;

/// Answers a request in token ids.
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
        prompt,
        checked,
        text,
    } = prepared;
    debug!(
        id = head.id,
        prompt_tokens = prompt.len(),
        choices = checked.n,
        "generate"
    );
    let answer = TokensAnswer {
        prompt: checked.return_token_ids.then(|| prompt.clone()),
        scored: checked
            .prompt_logprobs
            .then(|| (prompt.clone(), Vec::new())),
        encoder: Arc::clone(&api.encoder),
        logprobs: checked.logprobs,
        choices: (0..checked.n).map(|_| TokensState::default()).collect(),
        head: head.clone(),
        text,
    };
    let generation = Generation::submit(&api, &head, vec![prompt], &checked)?;
    sse::respond(generation, answer, checked.stream).await
}

/// A request, as far as it goes without the engine.
struct Prepared {
    head: Head,
    prompt: Vec<u32>,
    checked: Checked,
    /// The answer carries text as well.
    text: bool,
}

impl Prepared {
    fn new(api: &Api, headers: &HeaderMap, body: &[u8]) -> Result<Self, ApiError> {
        let request: GenerateRequest = body::parse(body)?;
        body::refuse_unsupported(body)?;
        let model = api.model(request.model.as_deref())?;
        let text = match request.output_mode.as_deref() {
            None | Some(GenerateRequest::TOKENS) => false,
            Some(GenerateRequest::TEXT) => true,
            Some(other) => {
                let problem = format!("must be \"tokens\" or \"text\", got {other:?}");
                return Err(ApiError::field("output_mode", problem));
            }
        };
        let as_completion = completion_of(&request)?;
        let fields = Fields {
            max_tokens_default: None,
            ..Fields::of_completion(&as_completion)
        };
        let checked = fields.check(&api.limits(), header(headers, PRIORITY_HEADER))?;
        let tokens = request.token_ids.unwrap_or_default();
        if tokens.is_empty() {
            return Err(ApiError::field(
                "token_ids",
                "must hold at least one token id",
            ));
        }
        let prompt = api
            .encoder
            .encode(&Prompt::Tokens(tokens))
            .map_err(|error| ApiError::field("token_ids", format!("cannot be taken: {error}")))?;
        let head = Head::new(
            "generate-tokens",
            headers,
            request.request_id.as_deref(),
            model,
        );
        Ok(Self {
            head,
            prompt,
            checked,
            text,
        })
    }
}

/// The completion request that means the same but for its prompt.
fn completion_of(request: &GenerateRequest) -> Result<CompletionRequest, ApiError> {
    let mut params = request.sampling_params.clone().unwrap_or_default();
    // A prompt among the sampling parameters means nothing and must not be read.
    params.remove("prompt");
    // Only a map with keys that are no strings fails to serialise.
    let params = serde_json::to_vec(&params).unwrap_or_default();
    body::refuse_unsupported(&params)?;
    let params: CompletionRequest = body::parse(&params)?;
    Ok(CompletionRequest {
        model: None,
        echo: None,
        stream: request.stream,
        stream_options: request.stream_options,
        cache_salt: request.cache_salt.clone(),
        priority: request.priority,
        return_token_ids: request.return_token_ids,
        ..params
    })
}

/// The answers of one request.
struct TokensAnswer {
    encoder: Arc<PromptEncoder>,
    head: Head,
    /// The prompt's ids if the answer is to repeat them; taken by the first chunk.
    prompt: Option<Vec<u32>>,
    /// The prompt's ids and the log probabilities of all but the first, if the answer lists them.
    scored: Option<(Vec<u32>, Vec<TokenLogprob>)>,
    logprobs: bool,
    text: bool,
    choices: Vec<TokensState>,
}

/// One choice so far.
#[derive(Default)]
struct TokensState {
    text: String,
    token_ids: Vec<u32>,
    logprobs: Vec<GenerateTokenLogprob>,
    end: Option<End>,
}

impl TokensAnswer {
    fn mode(&self) -> &'static str {
        if self.text {
            GenerateRequest::TEXT
        } else {
            GenerateRequest::TOKENS
        }
    }

    fn chunk(&self, choices: Vec<GenerateChunkChoice>) -> GenerateChunk {
        GenerateChunk {
            request_id: self.head.id.clone(),
            output_mode: self.mode().to_owned(),
            choices,
            usage: None,
            prompt_token_ids: None,
        }
    }

    fn logprob_of(&self, delta: &Delta) -> Option<GenerateTokenLogprob> {
        let (token, logprob) = (delta.token?, delta.logprob.as_ref()?);
        let entry = |token: u32, logprob: f32, rank: u32| {
            let text = self
                .text
                .then(|| token_text(self.encoder.tokenizer(), token));
            GenerateTokenLogprob {
                token_id: (!self.text).then_some(token),
                bytes: text.as_ref().map(|text| text.clone().into_bytes()),
                token: text,
                logprob: logprob.max(LOGPROB_MIN),
                rank: Some(rank),
                top_logprobs: Vec::new(),
            }
        };
        // The likeliest tokens come in order, so each one's rank is its place among them.
        let ranked = logprob.top.iter().zip(1..);
        let others = ranked.filter(|((other, _), _)| *other != token);
        let sampled = entry(token, logprob.logprob, logprob.rank);
        let others = others.map(|((token, logprob), rank)| entry(*token, *logprob, rank));
        Some(GenerateTokenLogprob {
            top_logprobs: std::iter::once(sampled.clone()).chain(others).collect(),
            ..sampled
        })
    }
}

impl Answer for TokensAnswer {
    type Chunk = GenerateChunk;
    type Whole = GenerateResponse;

    fn chunks(&mut self, index: usize, delta: Delta, events: &mut Vec<GenerateChunk>) {
        let logprobs = self.logprob_of(&delta);
        let (finish_reason, stop_reason) = super::reasons(delta.end);
        let choice = GenerateChunkChoice {
            index: index as u32,
            text: self.text.then_some(delta.text),
            logprobs: logprobs.map(|token| GenerateLogprobs {
                content: vec![token],
            }),
            finish_reason,
            stop_reason,
            token_ids: delta.token.into_iter().collect(),
        };
        let prompt_token_ids = self.prompt.take();
        events.push(GenerateChunk {
            prompt_token_ids,
            ..self.chunk(vec![choice])
        });
    }

    /// Every event has the token's id.
    fn only_text(&self, _: &Delta) -> bool {
        false
    }

    fn merge(into: &mut GenerateChunk, later: GenerateChunk) {
        for (choice, later) in into.choices.iter_mut().zip(later.choices) {
            if let (Some(text), Some(more)) = (&mut choice.text, &later.text) {
                text.push_str(more);
            }
            if let (Some(logprobs), Some(more)) = (&mut choice.logprobs, later.logprobs) {
                logprobs.content.extend(more.content);
            }
            choice.token_ids.extend(later.token_ids);
            choice.finish_reason = later.finish_reason;
            choice.stop_reason = later.stop_reason;
        }
    }

    fn usage_chunk(&self) -> GenerateChunk {
        self.chunk(Vec::new())
    }

    fn usage_of(chunk: &mut GenerateChunk) -> &mut Option<Usage> {
        &mut chunk.usage
    }

    fn add(&mut self, index: usize, mut delta: Delta) {
        if let Some((_, logprobs)) = &mut self.scored
            && !delta.prompt_logprobs.is_empty()
        {
            *logprobs = std::mem::take(&mut delta.prompt_logprobs);
        }
        let logprob = self.logprob_of(&delta);
        let Some(state) = self.choices.get_mut(index) else {
            return;
        };
        state.text.push_str(&delta.text);
        state.token_ids.extend(delta.token);
        state.logprobs.extend(logprob);
        state.end = delta.end;
    }

    fn whole(self, usage: Usage) -> GenerateResponse {
        let names = TokenNames {
            encoder: Arc::clone(&self.encoder),
            as_ids: false,
        };
        let scored = self.scored.as_ref();
        let prompt_logprobs = scored.and_then(|(prompt, logprobs)| {
            serde_json::to_value(names.prompt(prompt, logprobs)).ok()
        });
        let (mode, text, logprobs) = (self.mode(), self.text, self.logprobs);
        let choices = self.choices.into_iter().enumerate();
        let choices = choices.map(|(index, state)| {
            let (finish_reason, stop_reason) = super::reasons(state.end);
            GenerateChoice {
                index: index as u32,
                text: text.then_some(state.text),
                logprobs: logprobs.then_some(GenerateLogprobs {
                    content: state.logprobs,
                }),
                finish_reason,
                stop_reason,
                token_ids: state.token_ids,
            }
        });
        GenerateResponse {
            choices: choices.collect(),
            request_id: self.head.id,
            model: Some(self.head.model),
            created: Some(self.head.created),
            usage: Some(usage),
            prompt_logprobs,
            prompt_token_ids: self.prompt,
            kv_transfer_params: None,
            output_mode: mode.to_owned(),
        }
    }
}
