//! Each limit refused by name, each default in force.

use std::path::Path;
use std::sync::LazyLock;

use pointsman_proto::openai::StringOrArray;
use pointsman_proto::prompt::PromptEncoder;
use serde_json::json;

use super::*;

/// The limits of a worker with the demo model and `defaults`.
fn limits(defaults: &GenerationDefaults) -> Limits<'_> {
    static ENCODER: LazyLock<PromptEncoder> = LazyLock::new(|| {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("demo-model");
        PromptEncoder::load(&folder).expect("the demo model is in the repository")
    });
    Limits {
        defaults,
        vocabulary: Vocabulary {
            encoder: &ENCODER,
            size: ENCODER.vocab_size() as u32,
        },
        max_logprobs: 20,
        force_include_usage: false,
        tokens_as_token_ids: false,
    }
}

fn check(fields: &Fields<'_>) -> Result<Checked, ApiError> {
    fields.check(&limits(&GenerationDefaults::default()), None)
}

fn completion(request: serde_json::Value) -> Result<Checked, ApiError> {
    let parsed: CompletionRequest = serde_json::from_value(request).unwrap();
    check(&Fields::of_completion(&parsed))
}

fn param(result: Result<Checked, ApiError>) -> Option<String> {
    let error = result.expect_err("the value is out of range");
    assert_eq!(error.body().error.code, 400);
    error.body().error.param.clone()
}

#[test]
fn values_out_of_range_are_refused_by_name() {
    let many_tokens = vec![0; STOP_TOKENS_MAX + 1];
    let many_strings = vec!["x"; STOP_STRINGS_MAX + 1];
    let long_salt = "x".repeat(CACHE_SALT_CHARS_MAX + 1);
    for (field, request) in [
        ("temperature", json!({"temperature": -0.1})),
        ("temperature", json!({"temperature": 1e30})),
        ("top_p", json!({"top_p": 0.0})),
        ("top_p", json!({"top_p": 1.1})),
        ("top_k", json!({"top_k": -2})),
        ("min_p", json!({"min_p": 1.5})),
        ("repetition_penalty", json!({"repetition_penalty": 0.0})),
        ("presence_penalty", json!({"presence_penalty": 2.1})),
        ("frequency_penalty", json!({"frequency_penalty": -2.1})),
        ("max_tokens", json!({"max_tokens": 0})),
        ("max_tokens", json!({"max_tokens": 5_000_000_000_i64})),
        ("min_tokens", json!({"min_tokens": -1})),
        ("min_tokens", json!({"min_tokens": 5, "max_tokens": 4})),
        ("n", json!({"n": 0})),
        ("n", json!({"n": CHOICES_MAX + 1})),
        ("logprobs", json!({"logprobs": 21})),
        ("stop", json!({"stop": ["a", ""]})),
        ("stop", json!({"stop": many_strings})),
        ("stop_token_ids", json!({"stop_token_ids": many_tokens})),
        ("stream_options", json!({"stream_options": {}})),
        ("priority", json!({"priority": 1_i64 << 40})),
        ("cache_salt", json!({"cache_salt": ""})),
        ("cache_salt", json!({"cache_salt": "a/b"})),
        ("cache_salt", json!({"cache_salt": long_salt})),
        ("logprobs", json!({"logprobs": -1})),
        ("logprobs", json!({"logprobs": -2})),
        ("prompt_logprobs", json!({"prompt_logprobs": 21})),
        (
            "prompt_logprobs",
            json!({"prompt_logprobs": 1, "stream": true}),
        ),
        ("logprob_token_ids", json!({"logprob_token_ids": [1]})),
        (
            "logprob_token_ids",
            json!({"logprob_token_ids": [1_000_000], "logprobs": 1}),
        ),
        ("logit_bias", json!({"logit_bias": {"1000000": 1}})),
        (
            "allowed_token_ids",
            json!({"allowed_token_ids": [1_000_000]}),
        ),
        ("bad_words", json!({"bad_words": [""]})),
        (
            "min_tokens",
            json!({"min_tokens": 1, "max_tokens": 0, "echo": true}),
        ),
    ] {
        let refused = param(completion(request.clone()));
        assert_eq!(refused.as_deref(), Some(field), "{request}");
    }
}

#[test]
fn a_number_that_is_none_is_refused() {
    let fields = Fields {
        temperature: Some(f32::NAN),
        ..Fields::default()
    };
    assert_eq!(param(check(&fields)).as_deref(), Some("temperature"));
}

#[test]
fn silence_means_the_models_defaults_and_then_vllms() {
    let plain = check(&Fields::default()).unwrap().sampling;
    assert_eq!((plain.temperature, plain.top_p, plain.top_k), (1.0, 1.0, 0));
    let defaults = GenerationDefaults {
        temperature: Some(0.7),
        top_k: Some(20),
        ..GenerationDefaults::default()
    };
    let limits = limits(&defaults);
    let model = Fields::default().check(&limits, None).unwrap().sampling;
    assert_eq!(
        (model.temperature, model.top_p, model.top_k),
        (0.7, 1.0, 20)
    );
    let asked = Fields {
        temperature: Some(0.0),
        top_k: Some(-1),
        ..Fields::default()
    };
    let asked = asked.check(&limits, None).unwrap().sampling;
    assert_eq!((asked.temperature, asked.top_k), (0.0, 0));
}

#[test]
fn the_token_limit_depends_on_what_the_prompt_leaves() {
    let chat = check(&Fields::default()).unwrap();
    assert_eq!(chat.for_prompt(0, 100, 2048).unwrap().max_tokens, 1948);
    let completion = Fields {
        max_tokens_default: Some(16),
        ..Fields::default()
    };
    let completion = check(&completion).unwrap();
    assert_eq!(completion.for_prompt(0, 100, 2048).unwrap().max_tokens, 16);
    assert_eq!(completion.for_prompt(0, 2040, 2048).unwrap().max_tokens, 8);
    let asked = check(&Fields {
        max_tokens: Some(1949),
        ..Fields::default()
    })
    .unwrap();
    let error = asked.for_prompt(0, 100, 2048).unwrap_err();
    assert_eq!(error.body().error.param.as_deref(), Some("max_tokens"));
    assert!(error.body().error.message.contains("1949 > 2048 - 100"));
    let error = chat.for_prompt(0, 2048, 2048).unwrap_err();
    assert!(
        error.body().error.message.contains("2048 tokens"),
        "{error:?}"
    );
}

#[test]
fn choices_of_a_seeded_request_differ() {
    let checked = check(&Fields {
        seed: Some(-1),
        n: Some(2),
        ..Fields::default()
    })
    .unwrap();
    let seed = |choice| checked.for_prompt(choice, 1, 10).unwrap().seed;
    assert_eq!((seed(0), seed(1)), (Some(u64::MAX), Some(0)));
}

#[test]
fn the_priority_header_wins() {
    let fields = Fields {
        priority: Some(3),
        ..Fields::default()
    };
    let defaults = GenerationDefaults::default();
    let defaults = limits(&defaults);
    assert_eq!(fields.check(&defaults, Some("-7")).unwrap().priority, -7);
    assert_eq!(fields.check(&defaults, None).unwrap().priority, 3);
    assert!(fields.check(&defaults, Some("high")).is_err());
}

#[test]
fn chat_log_probabilities_need_both_fields_to_agree() {
    let request = |logprobs, top_logprobs| ChatCompletionRequest {
        logprobs,
        top_logprobs,
        ..ChatCompletionRequest::default()
    };
    assert_eq!(
        Fields::of_chat(&request(Some(true), None))
            .unwrap()
            .logprobs,
        Some(0)
    );
    assert_eq!(
        Fields::of_chat(&request(Some(true), Some(3)))
            .unwrap()
            .logprobs,
        Some(3)
    );
    assert_eq!(
        Fields::of_chat(&request(None, None)).unwrap().logprobs,
        None
    );
    assert!(Fields::of_chat(&request(None, Some(3))).is_err());
}

#[test]
fn one_stop_string_is_a_list_of_one() {
    let request = CompletionRequest {
        stop: Some(StringOrArray::One("END".to_owned())),
        ..CompletionRequest::default()
    };
    let checked = check(&Fields::of_completion(&request)).unwrap();
    assert_eq!(checked.text.stop, ["END"]);
}

#[test]
fn fields_about_tokens_reach_the_sampler() {
    let checked = completion(json!({
        "logit_bias": {"7": 3}, "allowed_token_ids": [9, 7], "bad_words": ["the"], "logprobs": 0,
        "logprob_token_ids": [4], "prompt_logprobs": 2,
    }))
    .unwrap();
    let sampling = checked.for_prompt(0, 10, 100).unwrap();
    assert_eq!(sampling.logit_bias, [(7, 3.0)]);
    assert_eq!(sampling.allowed_token_ids, [7, 9]);
    assert_eq!(sampling.bad_words.len(), 2);
    assert_eq!(
        (sampling.logprobs, sampling.prompt_logprobs),
        (Some(0), Some(2))
    );
    assert_eq!(sampling.logprob_token_ids, [4]);
    assert!(checked.prompt_logprobs);
    assert_eq!(
        checked.for_prompt(1, 10, 100).unwrap().prompt_logprobs,
        None,
        "choice 0 has them"
    );
}

#[test]
fn an_echo_takes_its_log_probabilities_from_the_prompt() {
    let checked =
        completion(json!({"echo": true, "logprobs": 3, "max_tokens": 0, "stream": true})).unwrap();
    let sampling = checked.for_prompt(1, 10, 100).unwrap();
    assert_eq!(
        (sampling.prompt_logprobs, sampling.max_tokens),
        (Some(3), 1)
    );
    assert!(checked.text.only_prompt && !checked.prompt_logprobs);
    let without = completion(json!({"echo": true})).unwrap();
    assert_eq!(
        without.for_prompt(0, 10, 100).unwrap().prompt_logprobs,
        None
    );
    assert!(!without.text.only_prompt);
}

#[test]
fn the_whole_vocabulary_is_listed_where_the_operator_allows_it() {
    let defaults = GenerationDefaults::default();
    let all = Limits {
        max_logprobs: -1,
        ..limits(&defaults)
    };
    let fields = Fields {
        prompt_logprobs: Some(-1),
        ..Fields::default()
    };
    let checked = fields.check(&all, None).unwrap();
    let size = all.vocabulary.size;
    assert_eq!(
        checked.for_prompt(0, 10, 100).unwrap().prompt_logprobs,
        Some(size)
    );
    let error = checked.for_prompt(0, 10_000, 20_000).unwrap_err();
    assert_eq!(error.body().error.param.as_deref(), Some("prompt_logprobs"));
}

#[test]
fn a_prompt_is_kept_as_far_as_it_fits() {
    let keep = |request| {
        let checked = completion(request).unwrap();
        checked
            .truncation(100)
            .map(|truncation| truncation.map(|t| t.keep))
    };
    assert_eq!(keep(json!({})), Ok(None));
    assert_eq!(keep(json!({"truncate_prompt_tokens": 7})), Ok(Some(7)));
    assert_eq!(
        keep(json!({"truncate_prompt_tokens": -1, "max_tokens": 30})),
        Ok(Some(70))
    );
    for wrong in [0, -2, 101] {
        let error = keep(json!({"truncate_prompt_tokens": wrong})).unwrap_err();
        assert_eq!(
            error.body().error.param.as_deref(),
            Some("truncate_prompt_tokens")
        );
    }
}

#[test]
fn usage_may_be_forced_upon_streams() {
    let defaults = GenerationDefaults::default();
    let forced = Limits {
        force_include_usage: true,
        ..limits(&defaults)
    };
    let stream = |stream| {
        let fields = Fields {
            stream,
            ..Fields::default()
        };
        fields.check(&forced, None).unwrap().stream
    };
    assert_eq!(stream(None), None);
    let both = StreamOptions {
        include_usage: Some(true),
        continuous_usage_stats: Some(true),
    };
    assert_eq!(stream(Some(true)), Some(both));
}

#[test]
fn limits_are_named_as_the_request_names_them() {
    let chat = |request| {
        let parsed: ChatCompletionRequest = serde_json::from_value(request).unwrap();
        param(check(&Fields::of_chat(&parsed).unwrap()))
    };
    assert_eq!(
        chat(json!({"max_completion_tokens": 0})).as_deref(),
        Some("max_completion_tokens")
    );
    assert_eq!(
        chat(json!({"max_tokens": 0})).as_deref(),
        Some("max_tokens")
    );
    assert_eq!(
        chat(json!({"logprobs": true, "top_logprobs": 21})).as_deref(),
        Some("top_logprobs")
    );
}
