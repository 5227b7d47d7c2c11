//! The table against the request types and against what vLLM has.

use std::fmt;

use pointsman_proto::openai::{ChatCompletionRequest, CompletionRequest};
use serde::de::{self, Deserialize, Deserializer, Visitor};
use serde::forward_to_deserialize_any;
use serde_json::json;

use super::*;

/// The fields of vLLM's two request types, of the reference (§1.6) and of its protocol files.
const OF_VLLM: &str = "
    model prompt echo frequency_penalty logit_bias logprobs max_tokens n presence_penalty seed stop stream
    stream_options suffix temperature top_p user use_beam_search top_k min_p repetition_penalty watermarking
    length_penalty stop_token_ids include_stop_str_in_output ignore_eos min_tokens skip_special_tokens
    spaces_between_special_tokens truncate_prompt_tokens truncation_side allowed_token_ids prompt_logprobs
    logprob_token_ids bad_words prompt_embeds add_special_tokens response_format structured_outputs priority
    request_id session_id return_tokens_as_token_ids return_token_ids routed_experts_prompt_start
    return_token_offsets return_mm_kwargs cache_salt kv_transfer_params ec_transfer_params vllm_xargs
    repetition_detection thinking_token_budget stream_interval
    messages top_logprobs max_completion_tokens tools tool_choice reasoning_effort include_reasoning
    parallel_tool_calls add_generation_prompt continue_final_message documents chat_template chat_template_kwargs
    media_io_kwargs mm_processor_kwargs return_prompt_text
    best_of guided_json guided_regex guided_choice guided_grammar";

fn support(name: &str) -> Option<Support> {
    FIELDS
        .iter()
        .find_map(|(known, support)| (*known == name).then_some(*support))
}

/// Takes the names of a type's fields from its `Deserialize`, and gives up.
#[derive(Debug)]
struct Names(Vec<&'static str>);

impl fmt::Display for Names {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{:?}", self.0)
    }
}

impl std::error::Error for Names {}

impl de::Error for Names {
    fn custom<T: fmt::Display>(_: T) -> Self {
        Self(Vec::new())
    }
}

struct Asking;

impl<'de> Deserializer<'de> for Asking {
    type Error = Names;

    fn deserialize_any<V: Visitor<'de>>(self, _: V) -> Result<V::Value, Names> {
        Err(Names(Vec::new()))
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        fields: &'static [&'static str],
        _: V,
    ) -> Result<V::Value, Names> {
        Err(Names(fields.to_vec()))
    }

    forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf option unit unit_struct
        newtype_struct seq tuple tuple_struct map enum identifier ignored_any
    }
}

fn names<T: for<'de> Deserialize<'de> + fmt::Debug>() -> Vec<&'static str> {
    T::deserialize(Asking).expect_err("it only asks").0
}

#[test]
fn the_table_is_sorted_and_names_each_field_once() {
    assert!(FIELDS.is_sorted_by(|a, b| a.0 < b.0));
}

#[test]
fn every_field_of_vllm_is_in_the_table() {
    let missing: Vec<_> = OF_VLLM
        .split_whitespace()
        .filter(|name| support(name).is_none())
        .collect();
    assert!(missing.is_empty(), "{missing:?}");
}

#[test]
fn what_is_said_to_be_read_is_read_and_the_other_way_round() {
    let mut read = names::<ChatCompletionRequest>();
    read.extend(names::<CompletionRequest>());
    assert!(read.len() > 60);
    for name in &read {
        // Some fields are there for other readers of the type, and only looked at here.
        let known = support(name).unwrap_or_else(|| panic!("{name} is not in the table"));
        let looked_at = ["response_format", "suffix", "tool_choice"].contains(name);
        assert_eq!(matches!(known, Support::Read), !looked_at, "{name}");
    }
    for (name, support) in FIELDS {
        assert!(
            !matches!(support, Support::Read) || read.contains(name),
            "nobody reads {name}"
        );
    }
}

#[test]
fn neutral_values_ask_for_nothing() {
    for (neutral, covered, other) in [
        (Neutral::Empty, json!({}), json!(0)),
        (Neutral::Number(1.0), json!(1), json!(2)),
        (
            Neutral::Text,
            json!({"type": "text"}),
            json!({"type": "json_object"}),
        ),
        (Neutral::Text, json!(["text"]), json!(["audio"])),
        (Neutral::Choice, json!("auto"), json!("required")),
    ] {
        assert!(
            neutral.covers(&covered) && neutral.covers(&Value::Null),
            "{neutral:?}"
        );
        assert!(!neutral.covers(&other), "{neutral:?}");
    }
}
