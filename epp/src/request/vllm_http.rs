//! `vllmhttp-parser`: vLLM's own `inference/v1/generate`, tokens in and tokens out.
//!
//! Its images are told by the hashes that vLLM's renderer gave them (`features.mm_hashes`, a list
//! for each modality), which stand for them here, too.

use std::collections::BTreeMap;

use pointsman_proto::prompt::Prompt;
use serde::Deserialize;
use serde_json::value::RawValue;

use super::fields::{self, includes_usage, typed};
use super::parsers::{Api, ParserType};
use super::{InferenceRequest, MediaItem, ParseError, RequestKind, media};

/// The plugin's type name.
pub(super) const TYPE_NAME: &str = "vllmhttp-parser";

/// The plugin type.
pub(super) const TYPE: ParserType =
    ParserType::new(TYPE_NAME, &[Api::json("inference/v1/generate", generate)]);

fn generate(body: &[u8]) -> Result<InferenceRequest, ParseError> {
    let fields: GenerateBody<'_> = fields::read(body)?;
    let mut request = InferenceRequest::new(RequestKind::Generate);
    request.set_model(fields.model, body);
    request.stream = typed(fields.stream).unwrap_or(false);
    request.stream_options_include_usage = includes_usage(fields.stream_options);
    request.cache_salt = typed(fields.cache_salt);
    let sampling: Option<SamplingParams<'_>> = typed(fields.sampling_params);
    request.max_tokens = sampling.and_then(|sampling| typed(sampling.max_tokens));
    let tokens = typed(fields.token_ids).or_else(|| typed(fields.prompt_token_ids));
    request.prompt = tokens
        .filter(|tokens: &Vec<u32>| !tokens.is_empty())
        .map(Prompt::Tokens);
    request.media = typed(fields.features).map(hashes).unwrap_or_default();
    request.with_model()
}

fn hashes(features: Features) -> Vec<MediaItem> {
    let mut items = Vec::new();
    for (modality, hashes) in features.mm_hashes {
        let modality = match modality.as_str() {
            "image" => "image",
            "audio" => "audio",
            "video" => "video",
            _ => continue,
        };
        for hash in hashes.into_iter().flatten() {
            media::add(&mut items, modality, &hash);
        }
    }
    items
}

#[derive(Deserialize)]
struct GenerateBody<'a> {
    #[serde(borrow)]
    model: Option<&'a RawValue>,
    #[serde(borrow)]
    token_ids: Option<&'a RawValue>,
    #[serde(borrow)]
    prompt_token_ids: Option<&'a RawValue>,
    #[serde(borrow)]
    sampling_params: Option<&'a RawValue>,
    #[serde(borrow)]
    features: Option<&'a RawValue>,
    #[serde(borrow)]
    stream: Option<&'a RawValue>,
    #[serde(borrow)]
    stream_options: Option<&'a RawValue>,
    #[serde(borrow)]
    cache_salt: Option<&'a RawValue>,
}

#[derive(Deserialize)]
struct SamplingParams<'a> {
    #[serde(borrow)]
    max_tokens: Option<&'a RawValue>,
}

#[derive(Deserialize)]
struct Features {
    mm_hashes: BTreeMap<String, Vec<Option<String>>>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_tokens_as_they_are() {
        let request = generate(
            br#"{"model":"m","token_ids":[1,2,3],"sampling_params":{"max_tokens":7,"temperature":0},"stream":true,
            "stream_options":{"include_usage":true},"cache_salt":"s","priority":3,"kv_transfer_params":null,
            "features":{"mm_hashes":{"image":["h0",null],"audio":["h1"],"point_cloud":["h2"]},"mm_placeholders":{}}}"#,
        )
        .unwrap();
        assert_eq!(request.kind, RequestKind::Generate);
        assert_eq!(request.prompt, Some(Prompt::Tokens(vec![1, 2, 3])));
        assert_eq!((request.stream, request.max_tokens), (true, Some(7)));
        assert!(request.stream_options_include_usage);
        assert_eq!(request.cache_salt.as_deref(), Some("s"));
        let modalities: Vec<&str> = request.media.iter().map(|item| item.modality).collect();
        assert_eq!(modalities, ["audio", "image"]);
    }

    #[test]
    fn tokens_have_an_older_name_and_are_missing_where_they_are_none() {
        let request = generate(br#"{"model":"m","prompt_token_ids":[4]}"#).unwrap();
        assert_eq!(request.prompt, Some(Prompt::Tokens(vec![4])));
        for ids in ["[]", "[-1]", "\"text\"", "null", "[[1]]"] {
            let body = format!(r#"{{"model":"m","token_ids":{ids}}}"#);
            assert_eq!(generate(body.as_bytes()).unwrap().prompt, None, "{ids}");
        }
    }

    #[test]
    fn a_model_is_needed() {
        let error = generate(br#"{"token_ids":[1]}"#).unwrap_err();
        assert_eq!(error.to_string(), "model not found in request body");
    }
}
