//! No body makes a parser panic, and a model's span lies in the body.

#![no_main]

use libfuzzer_sys::fuzz_target;
use pointsman_epp::request::{PLUGIN_TYPES, Parsers, RequestLine};

const PATHS: &[&str] = &[
    "/v1/chat/completions",
    "/v1/completions",
    "/v1/embeddings",
    "/v1/responses",
    "/v1/conversations",
    "/v1/images/generations",
    "/v1/messages",
    "/v1/messages/count_tokens",
    "/inference/v1/generate",
    "/generate",
    "/vllm.grpc.engine.VllmEngine/Generate",
    "/vllm.grpc.engine.VllmEngine/Embed",
    "/google.cloud.aiplatform.v1beta1.PredictionService/ChatCompletions",
    "/google.cloud.aiplatform.v1beta1.PredictionService/RawPredict",
];

fuzz_target!(|body: &[u8]| {
    let names: Vec<&str> = PLUGIN_TYPES.iter().map(|plugin| plugin.name).collect();
    let parsers = Parsers::new(&names).expect("the parsers' own names");
    for path in PATHS {
        let line = RequestLine {
            method: "POST",
            path,
            content_type: None,
        };
        if let Ok(request) = parsers.parse(&line, body)
            && let Some(span) = request.model_span
        {
            assert!(body.get(span).is_some());
        }
    }
});
