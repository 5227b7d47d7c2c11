//! `POST /v1/chat/completions`.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::State;
use axum::http::HeaderMap;
use axum::response::Response;
use pointsman_proto::openai::{
    ChatChoice, ChatChunk, ChatChunkChoice, ChatCompletionRequest, ChatDelta, ChatLogprobs,
    ChatMessage, ChatResponse, ChatTokenLogprob, Usage,
};
use pointsman_proto::prompt::{ChatPrompt, Prompt, Rendering};
use tracing::debug;

use super::choice::{Delta, End};
use super::error::ApiError;
use super::generate::{Generation, Head, PRIORITY_HEADER, header};
use super::logprobs::TokenNames;
use super::sampling::{Checked, Fields};
use super::sse::{self, Answer};
use super::{Api, body, prompt};
use crate::sample::TokenLogprob;

/// The role that answers.
const ASSISTANT: &str = "assistant";

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
    debug!(
        id = prepared.head.id,
        prompt_tokens = prepared.prompt.len(),
        choices = prepared.checked.n,
        "chat completion"
    );
    let answer = ChatAnswer::new(&api, &prepared);
    let Prepared {
        head,
        prompt,
        checked,
        ..
    } = prepared;
    let generation = Generation::submit(&api, &head, vec![prompt], &checked)?;
    sse::respond(generation, answer, checked.stream).await
}

/// A request, as far as it goes without the engine.
pub(super) struct Prepared {
    pub(super) head: Head,
    pub(super) prompt: Vec<u32>,
    pub(super) checked: Checked,
    /// What the answer begins with: the assistant's last message, where it is to be repeated.
    echo: String,
}

/// Everything that needs no engine: parse, check, encode.
pub(super) fn prepare(api: &Api, headers: &HeaderMap, body: &[u8]) -> Result<Prepared, ApiError> {
    let request: ChatCompletionRequest = body::parse(body)?;
    body::refuse_unsupported(body)?;
    let model = api.model(request.model.as_deref())?;
    let fields = Fields::of_chat(&request)?;
    let checked = fields.check(&api.limits(), header(headers, PRIORITY_HEADER))?;
    let truncation = checked.truncation(api.engine.max_model_len())?;
    let mut tokens = Vec::new();
    for prompt in request.prompt()? {
        // A chat request means one conversation.
        let Prompt::Chat(chat) = prompt else { continue };
        let text = render(api, &request, &chat)?;
        let special = request.add_special_tokens.unwrap_or(false);
        tokens.extend(prompt::encode_text(
            &api.encoder,
            &text,
            special,
            truncation,
        )?);
    }
    let head = Head::new("chatcmpl", headers, request.request_id.as_deref(), model);
    Ok(Prepared {
        echo: echo(&request),
        prompt: tokens,
        head,
        checked,
    })
}

/// The text of the conversation, as the request wants it rendered.
fn render(
    api: &Api,
    request: &ChatCompletionRequest,
    chat: &ChatPrompt,
) -> Result<String, ApiError> {
    let template = request.chat_template.as_deref();
    if template.is_some() && !api.config.answers.trust_request_chat_template {
        let problem = "is taken only by a worker with --trust-request-chat-template";
        return Err(ApiError::field("chat_template", problem));
    }
    let continue_final_message = request.continue_final_message.unwrap_or(false);
    if continue_final_message && chat.add_generation_prompt {
        let problem = "needs add_generation_prompt to be false";
        return Err(ApiError::field("continue_final_message", problem));
    }
    let rendering = Rendering {
        template,
        continue_final_message,
    };
    Ok(api.encoder.render_as(chat, rendering)?)
}

/// The last message's text, if the answer is to begin with it and goes on in its role.
fn echo(request: &ChatCompletionRequest) -> String {
    let last = request.messages.as_array().and_then(|list| list.last());
    let text = last.filter(|message| {
        let same_role =
            request.add_generation_prompt == Some(false) || message["role"] == ASSISTANT;
        request.echo == Some(true) && same_role
    });
    let text = text.and_then(|message| message["content"].as_str());
    text.unwrap_or_default().to_owned()
}

/// The answers of one chat request.
struct ChatAnswer {
    names: TokenNames,
    head: Head,
    /// The prompt's ids, if the answer shows them or what belongs to them.
    prompt: Vec<u32>,
    echo: String,
    logprobs: bool,
    /// The answer lists the prompt's log probabilities, which choice 0 brings.
    lists_prompt_logprobs: bool,
    prompt_logprobs: Vec<TokenLogprob>,
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
    fn new(api: &Api, prepared: &Prepared) -> Self {
        let checked = &prepared.checked;
        let shows_prompt = checked.return_token_ids || checked.prompt_logprobs;
        let prompt = if shows_prompt {
            prepared.prompt.clone()
        } else {
            Vec::new()
        };
        Self {
            names: TokenNames {
                encoder: Arc::clone(&api.encoder),
                as_ids: checked.tokens_as_token_ids,
            },
            head: prepared.head.clone(),
            prompt,
            echo: prepared.echo.clone(),
            logprobs: checked.logprobs,
            lists_prompt_logprobs: checked.prompt_logprobs,
            prompt_logprobs: Vec::new(),
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
            prompt_token_ids: None,
        }
    }

    fn logprob_of(&self, delta: &Delta) -> Option<ChatTokenLogprob> {
        let (token, logprob) = (delta.token?, delta.logprob.as_ref()?);
        Some(self.names.chat(token, logprob))
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
            let delta = ChatDelta {
                content: Some(self.echo.clone()),
                ..ChatDelta::first()
            };
            events.push(ChatChunk {
                prompt_token_ids: self.return_token_ids.then(|| self.prompt.clone()),
                ..self.chunk(vec![choice(delta)])
            });
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

    fn add(&mut self, index: usize, mut delta: Delta) {
        if !delta.prompt_logprobs.is_empty() {
            self.prompt_logprobs = std::mem::take(&mut delta.prompt_logprobs);
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

    fn whole(self, usage: Usage) -> ChatResponse {
        let (logprobs, return_token_ids) = (self.logprobs, self.return_token_ids);
        let prompt_logprobs = self
            .lists_prompt_logprobs
            .then(|| self.names.prompt(&self.prompt, &self.prompt_logprobs));
        let echo = self.echo;
        let choices = self.choices.into_iter().enumerate().map(|(index, state)| {
            let (finish_reason, stop_reason) = super::reasons(state.end);
            ChatChoice {
                index: index as u32,
                message: ChatMessage {
                    role: ASSISTANT.to_owned(),
                    content: Some(echo.clone() + &state.text),
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
            prompt_logprobs,
            prompt_token_ids: return_token_ids.then_some(self.prompt),
        }
    }
}
