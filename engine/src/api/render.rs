//! `POST /v1/chat/completions/render` and `/v1/completions/render`: what a request comes to, without computing it.
//!
//! The answer is a body for `/inference/v1/generate`: the token ids, and every sampling parameter with the defaults
//! of this worker filled in. Whoever routes by prefix asks one worker to render and another to generate, and both
//! agree on the ids by construction. Rendering goes through the very functions that chats and completions go
//! through, so a request that renders also runs.

use std::sync::Arc;

use axum::Json;
use axum::body::Body;
use axum::extract::State;
use axum::http::HeaderMap;
use pointsman_proto::openai::{GenerateRequest, StreamOptions};
use serde_json::{Map, Value};

use super::error::ApiError;
use super::generate::Head;
use super::sampling::Checked;
use super::{Api, body, chat, completion};

/// Fields of a request that are sampling parameters under the same name.
const SAMPLING_FIELDS: &[&str] = &[
    "n",
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "repetition_penalty",
    "presence_penalty",
    "frequency_penalty",
    "seed",
    "stop",
    "stop_token_ids",
    "include_stop_str_in_output",
    "ignore_eos",
    "min_tokens",
    "skip_special_tokens",
    "logprobs",
    "prompt_logprobs",
    "logprob_token_ids",
    "logit_bias",
    "allowed_token_ids",
    "bad_words",
];

/// Renders a chat: one request.
pub(super) async fn chat(
    State(api): State<Arc<Api>>,
    headers: HeaderMap,
    body: Body,
) -> Result<Json<GenerateRequest>, ApiError> {
    let body = body::read(&headers, body, api.config.body_bytes_max).await?;
    let (shared, bytes) = (Arc::clone(&api), body.len());
    let work = move || {
        let prepared = chat::prepare(&shared, &headers, &body)?;
        let mut fields: Map<String, Value> = body::parse(&body)?;
        // A chat says by two fields what a sampling parameter says by one.
        let top = fields
            .remove("top_logprobs")
            .unwrap_or_else(|| Value::from(0));
        if fields.remove("logprobs") == Some(Value::Bool(true)) {
            fields.insert(
                "logprobs".to_owned(),
                if top.is_null() { Value::from(0) } else { top },
            );
        }
        let chat::Prepared {
            head,
            prompt,
            checked,
            ..
        } = prepared;
        rendered(&shared, &head, prompt, &checked, &fields)
    };
    api.intake.run(bytes, work).await.map(Json)
}

/// Renders a completion: one request for each prompt.
pub(super) async fn completion(
    State(api): State<Arc<Api>>,
    headers: HeaderMap,
    body: Body,
) -> Result<Json<Vec<GenerateRequest>>, ApiError> {
    let body = body::read(&headers, body, api.config.body_bytes_max).await?;
    let (shared, bytes) = (Arc::clone(&api), body.len());
    let work = move || {
        let prepared = completion::Prepared::new(&shared, &headers, &body)?;
        let fields: Map<String, Value> = body::parse(&body)?;
        let rendered = prepared
            .prompts
            .into_iter()
            .map(|prompt| rendered(&shared, &prepared.head, prompt, &prepared.checked, &fields));
        rendered.collect::<Result<Vec<_>, ApiError>>()
    };
    api.intake.run(bytes, work).await.map(Json)
}

/// The request for token ids. `fields` are those of the request that was rendered, and have been checked.
fn rendered(
    api: &Api,
    head: &Head,
    prompt: Vec<u32>,
    checked: &Checked,
    fields: &Map<String, Value>,
) -> Result<GenerateRequest, ApiError> {
    let resolved = checked.for_prompt(0, prompt.len(), api.engine.max_model_len())?;
    let mut params: Map<String, Value> = SAMPLING_FIELDS
        .iter()
        .filter_map(|name| Some(((*name).to_owned(), fields.get(*name)?.clone())))
        .filter(|(_, value)| !value.is_null())
        .collect();
    params.insert("max_tokens".to_owned(), Value::from(resolved.max_tokens));
    // What the request leaves open is this worker's to say; another one may have other defaults.
    for (name, value) in [
        ("temperature", resolved.temperature),
        ("top_p", resolved.top_p),
        ("min_p", resolved.min_p),
        ("repetition_penalty", resolved.repetition_penalty),
    ] {
        params.entry(name).or_insert_with(|| decimal(value));
    }
    params
        .entry("top_k")
        .or_insert_with(|| Value::from(resolved.top_k));
    Ok(GenerateRequest {
        request_id: Some(head.id.clone()),
        token_ids: Some(prompt),
        sampling_params: Some(params),
        model: Some(head.model.clone()),
        stream: Some(checked.stream.is_some()),
        stream_options: checked
            .stream
            .filter(|options| *options != StreamOptions::default()),
        cache_salt: checked.cache_salt.as_deref().map(str::to_owned),
        priority: Some(i64::from(checked.priority)),
        ..GenerateRequest::default()
    })
}

/// The number as it was written: 0.7, not the nearest 32-bit float in 64 bits.
fn decimal(value: f32) -> Value {
    value
        .to_string()
        .parse::<f64>()
        .map_or(Value::Null, Value::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_default_is_written_as_a_person_would() {
        assert_eq!(decimal(0.7).to_string(), "0.7");
        assert_eq!(decimal(1.0), Value::from(1.0));
    }
}
