//! Request bodies: read under a bound, parsed, and complained about by name and place.
//!
//! Two things a plain deserializer would do badly. An error of type says at which byte it happened but not in
//! which field, so the field is looked up from the byte. And a field that this worker does not know is ignored, as
//! vLLM ignores it, unless ignoring it would give another answer than was asked for: those are refused by name.

mod fields;

use std::collections::HashMap;
use std::time::Duration;

use axum::body::Body;
use axum::http::{HeaderMap, header};
use bytes::{Bytes, BytesMut};
use futures_util::StreamExt;
use pointsman_proto::openai::ErrorBody;
use serde::de::DeserializeOwned;
use serde_json::Value;
use serde_json::value::RawValue;

use super::error::ApiError;
use fields::{FIELDS, Support};

/// How long a client may take to send the next piece of its body; a connection must not wait for ever.
const READ_TIMEOUT: Duration = Duration::from_mins(1);

/// Reads a body of at most `limit` bytes; a longer one is refused with 413, unread where its length is declared.
pub(super) async fn read(headers: &HeaderMap, body: Body, limit: usize) -> Result<Bytes, ApiError> {
    let too_large = || {
        let message =
            format!("the request body is larger than the {limit} bytes this worker takes");
        ApiError::new(ErrorBody::too_large(message))
    };
    let declared = headers
        .get(header::CONTENT_LENGTH)
        .and_then(|length| length.to_str().ok());
    if declared
        .and_then(|length| length.parse::<usize>().ok())
        .is_some_and(|len| len > limit)
    {
        return Err(too_large());
    }
    let mut chunks = body.into_data_stream();
    let mut bytes = BytesMut::new();
    loop {
        let Ok(chunk) = tokio::time::timeout(READ_TIMEOUT, chunks.next()).await else {
            let message = format!(
                "the request body did not go on for {} s",
                READ_TIMEOUT.as_secs()
            );
            return Err(ApiError::new(ErrorBody::request_timeout(message)));
        };
        let Some(chunk) = chunk else {
            return Ok(bytes.freeze());
        };
        let chunk = chunk.map_err(|error| {
            ApiError::bad_request(format!("the request body could not be read: {error}"))
        })?;
        if bytes.len() + chunk.len() > limit {
            return Err(too_large());
        }
        bytes.extend_from_slice(&chunk);
    }
}

/// Parses a JSON body. The error says where it is wrong, and in which field if in one.
pub(super) fn parse<T: DeserializeOwned>(body: &[u8]) -> Result<T, ApiError> {
    serde_json::from_slice(body).map_err(|error| {
        let field = field_at(body, error.line(), error.column());
        let message = match &field {
            Some(field) => format!("{field}: {error}"),
            None => format!("the request body is not the JSON object expected: {error}"),
        };
        ApiError::new(ErrorBody::bad_request(message, field.as_deref()))
    })
}

/// Refuses fields that would change the answer and that this worker does not support, unless their value asks for
/// what happens anyway. The body must have parsed.
pub(super) fn refuse_unsupported(body: &[u8]) -> Result<(), ApiError> {
    let Ok(fields) = serde_json::from_slice::<HashMap<String, &RawValue>>(body) else {
        return Ok(());
    };
    for (name, support) in FIELDS {
        let (Support::Refused(neutral), Some(value)) = (support, fields.get(*name)) else {
            continue;
        };
        let value: Value = serde_json::from_str(value.get()).unwrap_or(Value::Null);
        if !neutral.covers(&value) {
            return Err(ApiError::field(name, "is not supported by this worker"));
        }
    }
    Ok(())
}

/// The top-level field whose value holds the byte at `line` and `column`, both from 1 as serde_json counts.
fn field_at(body: &[u8], line: usize, column: usize) -> Option<String> {
    let line_start = match line {
        0 => return None,
        1 => 0,
        _ => {
            body.iter()
                .enumerate()
                .filter(|(_, byte)| **byte == b'\n')
                .nth(line - 2)?
                .0
                + 1
        }
    };
    let at = line_start + column;
    let fields: HashMap<String, &RawValue> = serde_json::from_slice(body).ok()?;
    fields.into_iter().find_map(|(name, value)| {
        let start = (value.get().as_ptr() as usize).checked_sub(body.as_ptr() as usize)?;
        // The column is that of the last byte read, which may be the one after the value.
        (start..=start + value.get().len())
            .contains(&at)
            .then_some(name)
    })
}

#[cfg(test)]
mod tests {
    use pointsman_proto::openai::CompletionRequest;

    use super::*;

    fn refusal(json: &str) -> Option<String> {
        refuse_unsupported(json.as_bytes())
            .err()
            .and_then(|error| error.body().error.param.clone())
    }

    #[test]
    fn broken_json_is_placed() {
        let error = parse::<CompletionRequest>(b"{\"prompt\": \"a\",\n  oops}").unwrap_err();
        let body = &error.body().error;
        assert_eq!(body.code, 400);
        assert!(body.message.contains("line 2 column 3"), "{}", body.message);
        assert_eq!(body.param, None);
    }

    #[test]
    fn a_value_of_the_wrong_type_names_its_field() {
        for (json, field) in [
            (
                "{\"prompt\":\"a\",\"max_tokens\":\"many\",\"n\":1}",
                "max_tokens",
            ),
            (
                "{\"prompt\":\"a\",\n\"temperature\":[1],\"n\":1}",
                "temperature",
            ),
            ("{\"prompt\":[\"a\",1]}", "prompt"),
            ("{\"stream\":1}", "stream"),
        ] {
            let error = parse::<CompletionRequest>(json.as_bytes()).unwrap_err();
            assert_eq!(error.body().error.param.as_deref(), Some(field), "{json}");
        }
    }

    #[test]
    fn unsupported_fields_are_refused_unless_they_ask_for_nothing() {
        for (field, refused, allowed) in [
            ("best_of", "2", "1"),
            ("thinking_token_budget", "5", "-1"),
            (
                "response_format",
                r#"{"type":"json_object"}"#,
                r#"{"type":"text"}"#,
            ),
            ("modalities", r#"["audio"]"#, r#"["text"]"#),
            ("structured_outputs", r#"{"regex":"a"}"#, "null"),
            ("tool_choice", r#""required""#, r#""auto""#),
            ("tool_choice", r#"{"type":"function"}"#, r#""none""#),
            ("use_beam_search", "true", "false"),
            ("suffix", r#""x""#, r#""""#),
        ] {
            assert_eq!(
                refusal(&format!("{{\"{field}\":{refused}}}")).as_deref(),
                Some(field)
            );
            assert_eq!(
                refusal(&format!("{{\"{field}\":{allowed}}}")),
                None,
                "{field}={allowed}"
            );
        }
        assert_eq!(refusal(r#"{"unheard_of":1,"user":"x"}"#), None);
    }
}
