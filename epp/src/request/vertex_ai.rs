//! `vertexai-parser`: `ChatCompletions`, `RawPredict` and `StreamRawPredict` of Vertex AI's gRPC
//! service `google.cloud.aiplatform.v1beta1.PredictionService`.
//!
//! Each of their messages wraps a JSON body of OpenAI's in a `google.api.HttpBody`: a chat completion
//! in the first, a response in the others. The body lies within lengths that a rewrite would change,
//! so these requests are not rewritten, and may go without a model.

use super::openai::chat_of_any_model;
use super::parsers::{Api, ParserType};
use super::responses::responses_of_any_model;
use super::{InferenceRequest, ParseError, grpc};

/// The plugin's type name.
pub(super) const TYPE_NAME: &str = "vertexai-parser";

/// The plugin type.
pub(super) const TYPE: ParserType = ParserType::new(
    TYPE_NAME,
    &[
        Api::grpc("PredictionService/ChatCompletions", |body| {
            wrapped("ChatCompletionsRequest", body, chat_of_any_model)
        }),
        Api::grpc("PredictionService/RawPredict", |body| {
            wrapped("RawPredictRequest", body, responses_of_any_model)
        }),
        Api::grpc("PredictionService/StreamRawPredict", |body| {
            wrapped("StreamRawPredictRequest", body, responses_of_any_model)
        }),
    ],
);

fn wrapped(
    name: &'static str,
    body: &[u8],
    parse: fn(&[u8]) -> Result<InferenceRequest, ParseError>,
) -> Result<InferenceRequest, ParseError> {
    let message: Wrapper = grpc::decode(name, grpc::message(body)?)?;
    let Some(http_body) = message.http_body else {
        return Err(ParseError::HttpBodyMissing { message: name });
    };
    let mut request = parse(&http_body.data)?;
    request.model_span = None;
    Ok(request)
}

/// What the three messages have in common.
#[derive(Clone, PartialEq, prost::Message)]
struct Wrapper {
    #[prost(message, optional, tag = "2")]
    http_body: Option<HttpBody>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct HttpBody {
    #[prost(bytes = "vec", tag = "2")]
    data: Vec<u8>,
}

#[cfg(test)]
mod tests {
    use pointsman_proto::prompt::Prompt;
    use prost::Message;

    use super::super::{Parsers, RequestKind, RequestLine};
    use super::*;

    fn parse(method: &str, json: Option<&str>) -> Result<InferenceRequest, ParseError> {
        let http_body = json.map(|json| HttpBody {
            data: json.as_bytes().to_vec(),
        });
        let message = Wrapper { http_body }.encode_to_vec();
        let mut body = vec![0];
        body.extend_from_slice(&(message.len() as u32).to_be_bytes());
        body.extend_from_slice(&message);
        let line = RequestLine {
            method: "POST",
            path: &format!("/google.cloud.aiplatform.v1beta1.PredictionService/{method}"),
            content_type: Some("application/grpc"),
        };
        Parsers::new(&[TYPE_NAME]).unwrap().parse(&line, &body)
    }

    #[test]
    fn reads_the_wrapped_body() {
        let chat = r#"{"model":"m","messages":[{"role":"user","content":"hi"}],"stream":true}"#;
        let request = parse("ChatCompletions", Some(chat)).unwrap();
        assert_eq!(
            (request.kind, request.stream, request.model.as_str()),
            (RequestKind::Chat, true, "m")
        );
        assert_eq!(request.model_span, None, "a span would lie in the wrapping");
        for method in ["RawPredict", "StreamRawPredict"] {
            let request = parse(method, Some(r#"{"input":"hi"}"#)).unwrap();
            assert_eq!(request.kind, RequestKind::Responses);
            assert!(matches!(request.prompt, Some(Prompt::Chat(_))));
        }
    }

    #[test]
    fn what_cannot_be_read_is_named() {
        let error = parse("RawPredict", None).unwrap_err().to_string();
        assert_eq!(error, "RawPredictRequest has no HttpBody");
        let error = parse("ChatCompletions", Some("no json")).unwrap_err();
        assert!(matches!(error, ParseError::Json(_)), "{error}");
    }
}
