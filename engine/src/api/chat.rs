//! `POST /v1/chat/completions`.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::State;
use axum::http::HeaderMap;
use axum::response::Response;
use pointsman_proto::openai::{
    ChatChoice, ChatChunk, ChatChunkChoice, ChatCompletionRequest, ChatDelta, ChatLogprobs,
    ChatMessage, ChatResponse, ChatTokenLogprob, ChatTopLogprob, Usage,
};
use pointsman_proto::prompt::PromptEncoder;
use tracing::debug;

use super::choice::{Delta, End};
use super::error::ApiError;
use super::generate::{Generation, Head, PRIORITY_HEADER, header};
use super::sampling::{Checked, Fields};
use super::sse::{self, Answer};
use super::{Api, body};
use crate::sample::TokenLogprob;
use crate::text::token_text;

/// Answers a chat request.
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
        .run(body.len(), move || prepare(&shared, &headers, &body))
        .await?;
    let (head, prompt, checked) = prepared;
    debug!(
        id = head.id,
        prompt_tokens = prompt.len(),
        choices = checked.n,
        "chat completion"
    );
    let generation = Generation::submit(&api, &head, vec![prompt], &checked)?;
    let answer = ChatAnswer::new(Arc::clone(&api.encoder), head, &checked);
    sse::respond(generation, answer, checked.stream).await
}

/// Everything that needs no engine: parse, check, encode.
pub(super) fn prepare(
    api: &Api,
    headers: &HeaderMap,
    body: &[u8],
) -> Result<(Head, Vec<u32>, Checked), ApiError> {
    let request: ChatCompletionRequest = body::parse(body)?;
    body::refuse_unsupported(body)?;
    let model = api.model(request.model.as_deref())?;
    let fields = Fields::of_chat(&request)?;
    let checked = fields.check(&api.config.defaults, header(headers, PRIORITY_HEADER))?;
    let mut tokens = Vec::new();
    for prompt in request.prompt()? {
        tokens.extend(api.encoder.encode(&prompt)?);
    }
    let head = Head::new("chatcmpl", headers, request.request_id.as_deref(), model);
    Ok((head, tokens, checked))
}

/// The answers of one chat request.
struct ChatAnswer {
    encoder: Arc<PromptEncoder>,
    head: Head,
    logprobs: bool,
    return_token_ids: bool,
    choices: Vec<ChatState>,
}

/// One choice so far.
#[derive(Default)]
struct ChatState {
    /// The chunk with the role was sent.
    opened: bool,
    text: String,
    token_ids: Vec<u32>,
    logprobs: Vec<ChatTokenLogprob>,
    end: Option<End>,
}

impl ChatAnswer {
    fn new(encoder: Arc<PromptEncoder>, head: Head, checked: &Checked) -> Self {
        Self {
            encoder,
            head,
            logprobs: checked.logprobs,
            return_token_ids: checked.return_token_ids,
            choices: (0..checked.n).map(|_| ChatState::default()).collect(),
        }
    }

    fn chunk(&self, choices: Vec<ChatChunkChoice>) -> ChatChunk {
        ChatChunk {
            id: self.head.id.clone(),
            object: ChatChunk::OBJECT.to_owned(),
            created: self.head.created,
            model: self.head.model.clone(),
            choices,
            usage: None,
        }
    }

    fn token_logprob(&self, token: u32, logprob: &TokenLogprob) -> ChatTokenLogprob {
        let tokenizer = self.encoder.tokenizer();
        let top = logprob.top.iter().map(|(token, logprob)| {
            let text = token_text(tokenizer, *token);
            ChatTopLogprob {
                bytes: Some(text.clone().into_bytes()),
                token: text,
                logprob: logprob.max(super::LOGPROB_MIN),
            }
        });
        let text = token_text(tokenizer, token);
        ChatTokenLogprob {
            top_logprobs: top.collect(),
            bytes: Some(text.clone().into_bytes()),
            token: text,
            logprob: logprob.logprob.max(super::LOGPROB_MIN),
        }
    }

    fn logprob_of(&self, delta: &Delta) -> Option<ChatTokenLogprob> {
        let (token, logprob) = (delta.token?, delta.logprob.as_ref()?);
        Some(self.token_logprob(token, logprob))
    }
}

impl Answer for ChatAnswer {
    type Chunk = ChatChunk;
    type Whole = ChatResponse;

    fn chunks(&mut self, index: usize, delta: Delta, events: &mut Vec<ChatChunk>) {
        let opened = match self.choices.get_mut(index) {
            Some(state) => std::mem::replace(&mut state.opened, true),
            None => return,
        };
        let choice = |delta| ChatChunkChoice {
            index: index as u32,
            delta,
            logprobs: None,
            finish_reason: None,
            stop_reason: None,
            token_ids: None,
        };
        if !opened {
            events.push(self.chunk(vec![choice(ChatDelta::first())]));
        }
        let logprobs = self.logprob_of(&delta).map(|token| ChatLogprobs {
            content: vec![token],
        });
        let (finish_reason, stop_reason) = super::reasons(delta.end);
        events.push(self.chunk(vec![ChatChunkChoice {
            logprobs,
            finish_reason,
            stop_reason,
            token_ids: self.return_token_ids.then(|| delta.token.into_iter().collect()),
            ..choice(ChatDelta::text(delta.text))
        }]));
    }

    fn only_text(&self, delta: &Delta) -> bool {
        !self.return_token_ids && delta.logprob.is_none() && delta.end.is_none()
    }

    fn merge(into: &mut ChatChunk, later: ChatChunk) {
        for (choice, later) in into.choices.iter_mut().zip(later.choices) {
            if let (Some(text), Some(more)) = (&mut choice.delta.content, &later.delta.content) {
                text.push_str(more);
            }
            if let (Some(logprobs), Some(more)) = (&mut choice.logprobs, later.logprobs) {
                logprobs.content.extend(more.content);
            }
            if let (Some(ids), Some(more)) = (&mut choice.token_ids, later.token_ids) {
                ids.extend(more);
            }
            choice.finish_reason = later.finish_reason;
            choice.stop_reason = later.stop_reason;
        }
    }

    fn usage_chunk(&self) -> ChatChunk {
        self.chunk(Vec::new())
    }

    fn usage_of(chunk: &mut ChatChunk) -> &mut Option<Usage> {
        &mut chunk.usage
    }

    fn add(&mut self, index: usize, delta: Delta) {
        let logprob = self.logprob_of(&delta);
        let Some(state) = self.choices.get_mut(index) else {
            return;
        };
        state.text.push_str(&delta.text);
        state.token_ids.extend(delta.token);
        state.logprobs.extend(logprob);
        state.end = delta.end;
    }

    fn whole(self, usage: Usage) -> ChatResponse {
        let (logprobs, return_token_ids) = (self.logprobs, self.return_token_ids);
        let choices = self.choices.into_iter().enumerate().map(|(index, state)| {
            let (finish_reason, stop_reason) = super::reasons(state.end);
            ChatChoice {
                index: index as u32,
                message: ChatMessage {
                    role: "assistant".to_owned(),
                    content: Some(state.text),
                },
                logprobs: logprobs.then_some(ChatLogprobs {
                    content: state.logprobs,
                }),
                finish_reason,
                stop_reason,
                token_ids: return_token_ids.then_some(state.token_ids),
            }
        });
        ChatResponse {
            choices: choices.collect(),
            id: self.head.id,
            object: ChatResponse::OBJECT.to_owned(),
            created: self.head.created,
            model: self.head.model,
            usage,
        }
    }
}
