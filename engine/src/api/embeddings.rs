//! `POST /v1/embeddings`: the last token's hidden state after the final norm, scaled to length one.
//!
//! That is what vLLM computes for a causal model without a pooling head of its own. Each input is a request to the
//! engine, with its own place in the queue, its own prefix hit and its own blocks; a bounded number of them is in
//! flight at a time, so that one call does not fill the queue.

use std::sync::Arc;

use axum::Json;
use axum::body::Body;
use axum::extract::State;
use axum::http::HeaderMap;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use futures_util::{StreamExt, TryStreamExt, stream};
use pointsman_proto::openai::{
    Embedding, EmbeddingData, EmbeddingRequest, EmbeddingResponse, ErrorBody, PromptShapeError,
    Usage,
};
use pointsman_proto::prompt::Prompt;
use tracing::debug;

use super::error::ApiError;
use super::generate::{Head, PRIORITY_HEADER, header};
use super::sampling::{checked_priority, checked_salt};
use super::{Api, body};
use crate::sample::SamplingParams;
use crate::scheduler::{Finish, NewRequest, Task};

/// Inputs of one request, as at OpenAI.
const INPUTS_MAX: usize = 2048;
/// Inputs of one request that are in the engine at a time.
const IN_FLIGHT: usize = 32;

/// Answers an embedding request.
pub(super) async fn handle(
    State(api): State<Arc<Api>>,
    headers: HeaderMap,
    body: Body,
) -> Result<Json<EmbeddingResponse>, ApiError> {
    api.refuse_when_closed()?;
    let body = body::read(&headers, body, api.config.body_bytes_max).await?;
    let shared = Arc::clone(&api);
    let mut prepared = api
        .intake
        .run(body.len(), move || Prepared::new(&shared, &headers, &body))
        .await?;
    debug!(
        id = prepared.head.id,
        inputs = prepared.prompts.len(),
        "embeddings"
    );
    let requests = prepared.requests();
    let embedded: Vec<Embedded> = stream::iter(requests)
        .map(|request| embed(&api, request))
        .buffered(IN_FLIGHT)
        .try_collect()
        .await?;
    let count = |of: fn(&Embedded) -> u32| embedded.iter().map(of).fold(0, u32::saturating_add);
    let usage = Usage::new(
        count(|one| one.prompt_tokens),
        0,
        count(|one| one.cached_tokens),
    );
    let data = embedded.into_iter().enumerate().map(|(index, mut one)| {
        if prepared.normalised {
            normalise(&mut one.values);
        }
        EmbeddingData {
            index: index as u32,
            object: "embedding".to_owned(),
            embedding: prepared.encoding.encode(one.values),
        }
    });
    Ok(Json(EmbeddingResponse {
        data: data.collect(),
        id: prepared.head.id,
        object: "list".to_owned(),
        created: prepared.head.created,
        model: prepared.head.model,
        usage,
    }))
}

/// A request, as far as it goes without the engine.
struct Prepared {
    head: Head,
    prompts: Vec<Vec<u32>>,
    encoding: Encoding,
    normalised: bool,
    rank: Option<u32>,
    priority: i32,
    cache_salt: Option<Arc<str>>,
}

impl Prepared {
    fn new(api: &Api, headers: &HeaderMap, body: &[u8]) -> Result<Self, ApiError> {
        let request: EmbeddingRequest = body::parse(body)?;
        body::refuse_unsupported(body)?;
        let model = api.model(request.model.as_deref())?;
        if let Some(dimensions) = request.dimensions {
            let problem = format!("cannot be changed for this model, got {dimensions}");
            return Err(ApiError::field("dimensions", problem));
        }
        let encoding = Encoding::of(&request)?;
        let priority = checked_priority(request.priority, header(headers, PRIORITY_HEADER))?;
        let cache_salt = request.cache_salt.as_deref();
        let cache_salt = cache_salt.map(checked_salt).transpose()?;
        let inputs = request.prompts().map_err(of_input)?;
        if inputs.len() > INPUTS_MAX {
            let problem = format!(
                "must hold at most {INPUTS_MAX} inputs, got {}",
                inputs.len()
            );
            return Err(ApiError::field("input", problem));
        }
        let add_special_tokens = request.adds_special_tokens();
        let mut prompts = Vec::with_capacity(inputs.len());
        for input in &inputs {
            let tokens = match input {
                Prompt::Text(text) => api.encoder.encode_text(text, add_special_tokens)?,
                Prompt::Chat(chat) => {
                    let text = api.encoder.render(chat)?;
                    api.encoder.encode_text(&text, add_special_tokens)?
                }
                Prompt::Tokens(_) => api.encoder.encode(input)?,
            };
            prompts.push(tokens);
        }
        let head = Head::new("embd", headers, request.request_id.as_deref(), model);
        Ok(Self {
            rank: head.caller.rank()?,
            head,
            prompts,
            encoding,
            normalised: request.use_activation.unwrap_or(true),
            priority,
            cache_salt,
        })
    }

    /// One request to the engine for each input.
    fn requests(&mut self) -> Vec<NewRequest> {
        let id: Arc<str> = Arc::from(self.head.id.as_str());
        let prompts = std::mem::take(&mut self.prompts).into_iter();
        let requests = prompts.map(|prompt| NewRequest {
            cache_salt: self.cache_salt.clone(),
            priority: self.priority,
            data_parallel_rank: self.rank,
            task: Task::Embed,
            deadline: self.head.deadline,
            ..NewRequest::new(Arc::clone(&id), prompt, SamplingParams::greedy(1))
        });
        requests.collect()
    }
}

/// The error of a completion's prompt in the words of this endpoint, where the field is called `input`.
fn of_input(error: PromptShapeError) -> ApiError {
    let field = error.param();
    if !field.starts_with("prompt") {
        return ApiError::from(error);
    }
    let renamed = |text: &str| text.replacen("prompt", "input", 1);
    ApiError::new(ErrorBody::bad_request(
        renamed(&error.to_string()),
        Some(&renamed(&field)),
    ))
}

/// The embedding of one input.
struct Embedded {
    values: Vec<f32>,
    prompt_tokens: u32,
    cached_tokens: u32,
}

async fn embed(api: &Api, request: NewRequest) -> Result<Embedded, ApiError> {
    let prompt_tokens = request.prompt.len() as u32;
    let mut stream = api.submit(request, None)?;
    while let Some(update) = stream.next().await {
        match (update.finish, update.embedding) {
            (None, _) => {}
            (Some(Finish::Stop { .. }), Some(values)) => {
                return Ok(Embedded {
                    values,
                    prompt_tokens,
                    cached_tokens: update.cached_tokens,
                });
            }
            (Some(finish), _) => return Err(ApiError::ended(&finish)),
        }
    }
    Err(ApiError::internal(
        "the engine stopped before the embedding was complete",
    ))
}

/// Scales to length one; what has no length stays as it is.
fn normalise(values: &mut [f32]) {
    let squares: f64 = values.iter().map(|value| f64::from(*value).powi(2)).sum();
    let length = squares.sqrt();
    if length > 0.0 {
        for value in values {
            *value = (f64::from(*value) / length) as f32;
        }
    }
}

/// How the numbers are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Encoding {
    Float,
    Base64 { big_endian: bool },
}

impl Encoding {
    fn of(request: &EmbeddingRequest) -> Result<Self, ApiError> {
        let one_of = |field, names: &str, got: &str| {
            ApiError::field(field, format!("must be {names}, got {got:?}"))
        };
        match request.embed_dtype.as_deref() {
            None | Some("float32") => {}
            Some(other) => return Err(one_of("embed_dtype", "\"float32\"", other)),
        }
        let big_endian = match request.endianness.as_deref() {
            None | Some("little") => false,
            Some("native") => cfg!(target_endian = "big"),
            Some("big") => true,
            Some(other) => {
                return Err(one_of(
                    "endianness",
                    "\"native\", \"little\" or \"big\"",
                    other,
                ));
            }
        };
        match request.encoding_format.as_deref() {
            None | Some("float") => Ok(Self::Float),
            Some("base64") => Ok(Self::Base64 { big_endian }),
            Some(other) => Err(one_of("encoding_format", "\"float\" or \"base64\"", other)),
        }
    }

    fn encode(self, values: Vec<f32>) -> Embedding {
        let bytes: Vec<u8> = match self {
            Self::Float => return Embedding::Float(values),
            Self::Base64 { big_endian: true } => {
                values.into_iter().flat_map(f32::to_be_bytes).collect()
            }
            Self::Base64 { big_endian: false } => {
                values.into_iter().flat_map(f32::to_le_bytes).collect()
            }
        };
        Embedding::Base64(STANDARD.encode(bytes))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_embedding_has_length_one() {
        let normalised = |values: &[f32]| {
            let mut values = values.to_vec();
            normalise(&mut values);
            values
        };
        assert_eq!(normalised(&[3.0, 4.0]), [0.6, 0.8]);
        assert_eq!(normalised(&[0.0, 0.0]), [0.0, 0.0]);
    }

    #[test]
    fn base64_holds_floats_in_the_order_asked_for() {
        let encoded = |endianness: &str| {
            let request = EmbeddingRequest {
                encoding_format: Some("base64".to_owned()),
                endianness: Some(endianness.to_owned()),
                ..EmbeddingRequest::default()
            };
            Encoding::of(&request).unwrap().encode(vec![1.0, -2.0])
        };
        // 1.0 is 3f800000 and -2.0 is c0000000.
        assert_eq!(
            encoded("little"),
            Embedding::Base64("AACAPwAAAMA=".to_owned())
        );
        assert_eq!(encoded("big"), Embedding::Base64("P4AAAMAAAAA=".to_owned()));
    }

    #[test]
    fn an_encoding_that_is_none_is_refused_by_name() {
        let error = |change: fn(&mut EmbeddingRequest, String)| {
            let mut request = EmbeddingRequest::default();
            change(&mut request, "other".to_owned());
            Encoding::of(&request)
                .unwrap_err()
                .body()
                .error
                .param
                .clone()
        };
        assert_eq!(
            error(|request, value| request.encoding_format = Some(value)).as_deref(),
            Some("encoding_format")
        );
        assert_eq!(
            error(|request, value| request.embed_dtype = Some(value)).as_deref(),
            Some("embed_dtype")
        );
        assert_eq!(
            error(|request, value| request.endianness = Some(value)).as_deref(),
            Some("endianness")
        );
    }

    #[test]
    fn the_field_is_called_input() {
        let error = of_input(PromptShapeError::EmptyPromptAt { index: 2 });
        let error = &error.body().error;
        assert_eq!(error.param.as_deref(), Some("input[2]"));
        assert_eq!(error.message, "input[2] must not be empty");
    }
}
