//! `vllmgrpc-parser`: `Generate` and `Embed` of vLLM's gRPC service `vllm.grpc.engine.VllmEngine`.
//!
//! Only the fields that the picker needs are declared, with the numbers of vLLM's
//! `vllm_engine.proto`; the others, tensors of pixels among them, are skipped unread. The service
//! names no model, so these requests cannot be rewritten either.

use pointsman_proto::prompt::Prompt;

use super::parsers::{Api, ParserType};
use super::{InferenceRequest, MediaItem, ParseError, RequestKind, grpc, media};

/// The plugin's type name.
pub(super) const TYPE_NAME: &str = "vllmgrpc-parser";

/// The plugin type.
pub(super) const TYPE: ParserType = ParserType::new(
    TYPE_NAME,
    &[
        Api::grpc("VllmEngine/Generate", generate),
        Api::grpc("VllmEngine/Embed", embed),
    ],
);

fn generate(body: &[u8]) -> Result<InferenceRequest, ParseError> {
    let message: GenerateRequest = grpc::decode("GenerateRequest", grpc::message(body)?)?;
    let mut request = InferenceRequest::new(RequestKind::Generate);
    request.stream = message.stream;
    request.prompt = message.input.and_then(|input| match input {
        Input::Tokenized(tokenized) => tokens(tokenized),
        Input::Text(text) => Some(Prompt::Text(text)),
    });
    request.max_tokens = message
        .sampling_params
        .and_then(|sampling| sampling.max_tokens);
    request.media = message.mm_inputs.map(hashes).unwrap_or_default();
    Ok(request)
}

fn embed(body: &[u8]) -> Result<InferenceRequest, ParseError> {
    let message: EmbedRequest = grpc::decode("EmbedRequest", grpc::message(body)?)?;
    let mut request = InferenceRequest::new(RequestKind::Embedding);
    request.prompt = message.tokenized.and_then(tokens);
    Ok(request)
}

fn tokens(tokenized: TokenizedInput) -> Option<Prompt> {
    (!tokenized.input_ids.is_empty()).then_some(Prompt::Tokens(tokenized.input_ids))
}

fn hashes(inputs: MultimodalInputs) -> Vec<MediaItem> {
    let mut items = Vec::new();
    for hash in inputs.mm_hashes {
        media::add(&mut items, "image", &hash);
    }
    items
}

#[derive(Clone, PartialEq, prost::Message)]
struct GenerateRequest {
    #[prost(oneof = "Input", tags = "2, 3")]
    input: Option<Input>,
    #[prost(message, optional, tag = "4")]
    sampling_params: Option<SamplingParams>,
    #[prost(bool, tag = "5")]
    stream: bool,
    #[prost(message, optional, tag = "7")]
    mm_inputs: Option<MultimodalInputs>,
}

#[derive(Clone, PartialEq, prost::Oneof)]
enum Input {
    #[prost(message, tag = "2")]
    Tokenized(TokenizedInput),
    #[prost(string, tag = "3")]
    Text(String),
}

#[derive(Clone, PartialEq, prost::Message)]
struct TokenizedInput {
    #[prost(uint32, repeated, tag = "2")]
    input_ids: Vec<u32>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct SamplingParams {
    #[prost(uint32, optional, tag = "8")]
    max_tokens: Option<u32>,
}

/// Images or video frames that the client has prepared.
#[derive(Clone, PartialEq, prost::Message)]
struct MultimodalInputs {
    /// One text for each.
    #[prost(string, repeated, tag = "6")]
    mm_hashes: Vec<String>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct EmbedRequest {
    #[prost(message, optional, tag = "2")]
    tokenized: Option<TokenizedInput>,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn framed(message: &[u8]) -> Vec<u8> {
        let mut body = vec![0];
        body.extend_from_slice(&(message.len() as u32).to_be_bytes());
        body.extend_from_slice(message);
        body
    }

    /// Written by hand after the .proto: request_id `r1`, tokenized with the text `x` and the ids 1
    /// and 300, sampling_params with temperature 0.5 and max_tokens 16, stream, mm_inputs with
    /// pixel values `zz` and the hash `ab`, data_parallel_rank 1.
    const GENERATE: &[u8] =
        b"\x0a\x02r1\x12\x08\x0a\x01x\x12\x03\x01\xac\x02\x22\x07\x0d\0\0\0\x3f\x40\x10\x28\x01\
        \x3a\x0a\x12\x04\x0a\x02zz\x32\x02ab\x48\x01";

    #[test]
    fn golden_generate() {
        let request = generate(&framed(GENERATE)).unwrap();
        assert_eq!(request.kind, RequestKind::Generate);
        assert_eq!(request.prompt, Some(Prompt::Tokens(vec![1, 300])));
        assert_eq!((request.stream, request.max_tokens), (true, Some(16)));
        assert_eq!((request.media.len(), request.media[0].bytes), (1, 2));
        assert_eq!((request.model.as_str(), request.model_span), ("", None));
    }

    #[test]
    fn text_is_a_prompt_and_ids_may_come_unpacked() {
        let request = generate(&framed(b"\x1a\x02hi")).unwrap();
        assert_eq!(request.prompt, Some(Prompt::Text("hi".to_owned())));
        let request = generate(&framed(b"\x12\x04\x10\x07\x10\x08")).unwrap();
        assert_eq!(request.prompt, Some(Prompt::Tokens(vec![7, 8])));
        assert_eq!(generate(&framed(b"")).unwrap().prompt, None);
    }

    #[test]
    fn golden_embed() {
        let request = embed(&framed(b"\x0a\x01r\x12\x04\x12\x02\x05\x06")).unwrap();
        assert_eq!(request.kind, RequestKind::Embedding);
        assert_eq!(request.prompt, Some(Prompt::Tokens(vec![5, 6])));
    }

    #[test]
    fn what_cannot_be_read_is_named() {
        let text = |body: &[u8]| generate(body).unwrap_err().to_string();
        assert!(text(b"{}").starts_with("invalid or unsupported gRPC payload: "));
        let torn = framed(&GENERATE[..GENERATE.len() - 1]);
        assert!(text(&torn).starts_with("unmarshaling GenerateRequest: "));
        let error = embed(&framed(b"\x12\x7f")).unwrap_err().to_string();
        assert!(error.starts_with("unmarshaling EmbedRequest: "), "{error}");
    }
}
