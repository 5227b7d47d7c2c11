//! `POST /tokenize` and `/detokenize`: exactly what a completion would do with its prompt, without computing it.

use std::sync::Arc;

use axum::Json;
use axum::body::Body;
use axum::extract::State;
use axum::http::HeaderMap;
use pointsman_proto::openai::{
    DetokenizeRequest, DetokenizeResponse, TokenizeRequest, TokenizeResponse,
};
use pointsman_proto::prompt::Prompt;

use super::error::ApiError;
use super::{Api, body};

/// Text or messages to token ids.
pub(super) async fn tokenize(
    State(api): State<Arc<Api>>,
    headers: HeaderMap,
    body: Body,
) -> Result<Json<TokenizeResponse>, ApiError> {
    let body = body::read(&headers, body, api.config.body_bytes_max).await?;
    let shared = Arc::clone(&api);
    api.intake
        .run(body.len(), move || tokenized(&shared, &body))
        .await
        .map(Json)
}

fn tokenized(api: &Api, body: &[u8]) -> Result<TokenizeResponse, ApiError> {
    let request: TokenizeRequest = body::parse(body)?;
    api.model(request.model.as_deref())?;
    let mut tokens = Vec::new();
    for prompt in request.prompt()? {
        let text = match prompt {
            Prompt::Text(text) => text,
            Prompt::Chat(chat) => api.encoder.render(&chat)?,
            Prompt::Tokens(ids) => {
                tokens.extend(ids);
                continue;
            }
        };
        tokens.extend(
            api.encoder
                .encode_text(&text, request.adds_special_tokens())?,
        );
    }
    let token_strs = request.return_token_strs.unwrap_or(false).then(|| {
        let tokenizer = api.encoder.tokenizer();
        tokens
            .iter()
            .map(|id| tokenizer.id_to_token(*id).unwrap_or_default())
            .collect()
    });
    Ok(TokenizeResponse {
        count: tokens.len() as u32,
        max_model_len: api.engine.max_model_len(),
        tokens,
        token_strs,
    })
}

/// Token ids to text, special tokens shown.
pub(super) async fn detokenize(
    State(api): State<Arc<Api>>,
    headers: HeaderMap,
    body: Body,
) -> Result<Json<DetokenizeResponse>, ApiError> {
    let body = body::read(&headers, body, api.config.body_bytes_max).await?;
    let shared = Arc::clone(&api);
    api.intake
        .run(body.len(), move || detokenized(&shared, &body))
        .await
        .map(Json)
}

fn detokenized(api: &Api, body: &[u8]) -> Result<DetokenizeResponse, ApiError> {
    let request: DetokenizeRequest = body::parse(body)?;
    api.model(request.model.as_deref())?;
    // Encoding ids only checks them against the vocabulary.
    let tokens = api
        .encoder
        .encode(&Prompt::Tokens(request.tokens))
        .map_err(|error| ApiError::field("tokens", format!("are not decodable: {error}")))?;
    let prompt = api
        .encoder
        .tokenizer()
        .decode(&tokens, false)
        .map_err(|error| ApiError::field("tokens", format!("are not decodable: {error}")))?;
    Ok(DetokenizeResponse { prompt })
}
