//! `sglanghttp-parser`: SGLang's own `generate`.
//!
//! A worker of SGLang serves one model, and its API names none; the text is encoded as it stands,
//! without a chat template. `extra_key` is what keeps prefix caches apart there.

use serde::Deserialize;
use serde_json::Value;
use serde_json::value::RawValue;

use super::fields::{self, first_prompt, is_given, typed};
use super::parsers::{Api, ParserType};
use super::{InferenceRequest, MediaItem, ParseError, RequestKind, media};

/// The plugin's type name.
pub(super) const TYPE_NAME: &str = "sglanghttp-parser";

/// The plugin type.
pub(super) const TYPE: ParserType = ParserType::new(TYPE_NAME, &[Api::json("generate", generate)]);

fn generate(body: &[u8]) -> Result<InferenceRequest, ParseError> {
    let fields: GenerateBody<'_> = fields::read(body)?;
    let mut request = InferenceRequest::new(RequestKind::Generate);
    request.set_model(fields.model, body);
    request.stream = typed(fields.stream).unwrap_or(false);
    request.cache_salt = typed(fields.extra_key);
    let sampling: Option<SamplingParams<'_>> = typed(fields.sampling_params);
    request.max_tokens = sampling.and_then(|sampling| typed(sampling.max_new_tokens));
    let input = [fields.input_ids, fields.text]
        .into_iter()
        .find(|field| is_given(*field));
    request.prompt = input.flatten().and_then(first_prompt);
    for (modality, field) in [
        ("image", fields.image_data),
        ("audio", fields.audio_data),
        ("video", fields.video_data),
    ] {
        if let Some(data) = typed(field) {
            add_media(&mut request.media, modality, &data);
        }
    }
    Ok(request)
}

/// Data is one URL or encoded file, a list of them, or a list of such lists for several prompts.
fn add_media(items: &mut Vec<MediaItem>, modality: &'static str, data: &Value) {
    match data {
        Value::String(content) => media::add(items, modality, content),
        Value::Array(list) => {
            for element in list {
                add_media(items, modality, element);
            }
        }
        Value::Object(fields) => {
            if let Some(url) = fields.get("url").and_then(Value::as_str) {
                media::add(items, modality, url);
            }
        }
        _ => {}
    }
}

#[derive(Deserialize)]
struct GenerateBody<'a> {
    #[serde(borrow)]
    model: Option<&'a RawValue>,
    #[serde(borrow)]
    text: Option<&'a RawValue>,
    #[serde(borrow)]
    input_ids: Option<&'a RawValue>,
    #[serde(borrow)]
    sampling_params: Option<&'a RawValue>,
    #[serde(borrow)]
    extra_key: Option<&'a RawValue>,
    #[serde(borrow)]
    stream: Option<&'a RawValue>,
    #[serde(borrow)]
    image_data: Option<&'a RawValue>,
    #[serde(borrow)]
    audio_data: Option<&'a RawValue>,
    #[serde(borrow)]
    video_data: Option<&'a RawValue>,
}

#[derive(Deserialize)]
struct SamplingParams<'a> {
    #[serde(borrow)]
    max_new_tokens: Option<&'a RawValue>,
}

#[cfg(test)]
mod tests {
    use pointsman_proto::prompt::Prompt;

    use super::*;

    #[test]
    fn reads_text_or_tokens() {
        let request = generate(
            br#"{"text":"The capital of France is","sampling_params":{"max_new_tokens":8,"temperature":0},
            "stream":true,"extra_key":"tenant","image_data":["https://a/cat.png",{"url":"u"}],"audio_data":"UklG"}"#,
        )
        .unwrap();
        assert_eq!(
            request.prompt,
            Some(Prompt::Text("The capital of France is".to_owned()))
        );
        assert_eq!((request.stream, request.max_tokens), (true, Some(8)));
        assert_eq!(request.cache_salt.as_deref(), Some("tenant"));
        assert_eq!(request.media.len(), 3);
        assert_eq!((request.model.as_str(), request.model_span), ("", None));
        for (body, tokens) in [
            (r#"{"input_ids":[1,2]}"#, vec![1, 2]),
            (r#"{"input_ids":[[3],[4]],"text":null}"#, vec![3]),
        ] {
            let request = generate(body.as_bytes()).unwrap();
            assert_eq!(request.prompt, Some(Prompt::Tokens(tokens)));
        }
    }

    #[test]
    fn what_has_another_type_is_the_workers_to_refuse() {
        let request =
            generate(br#"{"text":{},"sampling_params":[{"max_new_tokens":8}],"image_data":7}"#)
                .unwrap();
        assert_eq!((request.prompt, request.max_tokens), (None, None));
        assert!(generate(b"[]").is_err());
    }
}
