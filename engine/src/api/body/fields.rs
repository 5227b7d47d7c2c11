//! Every field that OpenAI's and vLLM's requests have, and what becomes of it here.
//!
//! A field in this table is read, or says nothing of the answer, or is refused by name unless its value asks for what
//! happens anyway. One that is not in it is ignored, as vLLM ignores what it does not know. A test holds the table
//! against the fields that the request types read and against the reference's list.

use serde_json::Value;

/// What becomes of a field.
#[derive(Clone, Copy, Debug)]
pub(super) enum Support {
    /// A request type reads it.
    Read,
    /// The answer is the same whatever it says.
    Ignored,
    /// Not implemented, so refused but for these values.
    Refused(Neutral),
}

/// Which values of a field that is not implemented ask for nothing.
#[derive(Clone, Copy, Debug)]
pub(super) enum Neutral {
    /// `null` and whatever is empty or false.
    Empty,
    /// Also this number.
    Number(f64),
    /// Also an object whose `type` is `text`, or the list `["text"]`.
    Text,
    /// Also the strings `none` and `auto`.
    Choice,
}

impl Neutral {
    pub(super) fn covers(self, value: &Value) -> bool {
        let empty = match value {
            Value::Null => true,
            Value::Bool(value) => !value,
            Value::String(text) => text.is_empty(),
            Value::Array(list) => list.is_empty(),
            Value::Object(map) => map.is_empty(),
            Value::Number(_) => false,
        };
        empty
            || match self {
                Self::Empty => false,
                Self::Number(number) => value.as_f64() == Some(number),
                Self::Text => value["type"] == "text" || *value == Value::from(vec!["text"]),
                Self::Choice => value == "none" || value == "auto",
            }
    }
}

const REFUSED: Support = Support::Refused(Neutral::Empty);

/// The table. `guided_*` are vLLM's names of before `structured_outputs`; vLLM ignores them with a warning, but a
/// client that sends one counts on its answer having that form. `echo`, `logprobs` and `add_special_tokens` mean
/// different things to the two endpoints, and both read them.
pub(super) const FIELDS: &[(&str, Support)] = &[
    ("add_generation_prompt", Support::Read),
    ("add_special_tokens", Support::Read),
    ("allowed_token_ids", Support::Read),
    ("audio", REFUSED),
    ("bad_words", Support::Read),
    ("best_of", Support::Refused(Neutral::Number(1.0))),
    ("cache_salt", Support::Read),
    ("chat_template", Support::Read),
    ("chat_template_kwargs", Support::Read),
    ("continue_final_message", Support::Read),
    ("documents", Support::Read),
    ("ec_transfer_params", REFUSED),
    ("echo", Support::Read),
    ("frequency_penalty", Support::Read),
    ("function_call", Support::Refused(Neutral::Choice)),
    ("functions", REFUSED),
    ("guided_choice", REFUSED),
    ("guided_decoding_backend", Support::Ignored),
    ("guided_grammar", REFUSED),
    ("guided_json", REFUSED),
    ("guided_regex", REFUSED),
    ("guided_whitespace_pattern", REFUSED),
    ("ignore_eos", Support::Read),
    // There is no reasoning parser, so there is nothing to leave out.
    ("include_reasoning", Support::Ignored),
    ("include_stop_str_in_output", Support::Read),
    ("kv_transfer_params", REFUSED),
    ("length_penalty", Support::Refused(Neutral::Number(1.0))),
    ("logit_bias", Support::Read),
    ("logits_processors", REFUSED),
    ("logprob_token_ids", Support::Read),
    ("logprobs", Support::Read),
    ("max_completion_tokens", Support::Read),
    ("max_tokens", Support::Read),
    ("media_io_kwargs", Support::Ignored),
    ("messages", Support::Read),
    ("metadata", Support::Ignored),
    ("min_p", Support::Read),
    ("min_tokens", Support::Read),
    ("mm_processor_kwargs", Support::Ignored),
    ("modalities", Support::Refused(Neutral::Text)),
    ("model", Support::Read),
    ("n", Support::Read),
    // Calls come through as text, as many as the model makes.
    ("parallel_tool_calls", Support::Ignored),
    // A guess of the answer, which may only make it come sooner.
    ("prediction", Support::Ignored),
    ("presence_penalty", Support::Read),
    ("priority", Support::Read),
    ("prompt", Support::Read),
    ("prompt_cache_key", Support::Ignored),
    ("prompt_embeds", REFUSED),
    ("prompt_logprobs", Support::Read),
    ("reasoning_effort", Support::Read),
    ("repetition_detection", REFUSED),
    ("repetition_penalty", Support::Read),
    ("request_id", Support::Read),
    ("response_format", Support::Refused(Neutral::Text)),
    // What only the render endpoints answer with.
    ("return_mm_kwargs", Support::Ignored),
    ("return_prompt_text", REFUSED),
    ("return_token_ids", Support::Read),
    ("return_token_offsets", Support::Ignored),
    ("return_tokens_as_token_ids", Support::Read),
    ("routed_experts_prompt_start", Support::Ignored),
    ("safety_identifier", Support::Ignored),
    ("seed", Support::Read),
    ("service_tier", Support::Ignored),
    ("session_id", Support::Ignored),
    ("skip_special_tokens", Support::Read),
    // Matters to tokenizers that are written in Python only; no tokenizer.json has them.
    ("spaces_between_special_tokens", Support::Ignored),
    ("stop", Support::Read),
    ("stop_token_ids", Support::Read),
    ("store", Support::Ignored),
    ("stream", Support::Read),
    // How many tokens share a chunk; the text is the same.
    ("stream_interval", Support::Ignored),
    ("stream_options", Support::Read),
    ("structured_outputs", REFUSED),
    ("suffix", REFUSED),
    ("temperature", Support::Read),
    (
        "thinking_token_budget",
        Support::Refused(Neutral::Number(-1.0)),
    ),
    ("tool_choice", Support::Refused(Neutral::Choice)),
    ("tools", Support::Read),
    ("top_k", Support::Read),
    ("top_logprobs", Support::Read),
    ("top_p", Support::Read),
    ("truncate_prompt_tokens", Support::Read),
    ("truncation_side", Support::Read),
    ("use_beam_search", REFUSED),
    ("user", Support::Read),
    // A wish about style that no template knows.
    ("verbosity", Support::Ignored),
    // Arguments of an operator's own extensions, of which there are none.
    ("vllm_xargs", Support::Ignored),
    ("watermarking", REFUSED),
    ("web_search_options", REFUSED),
];

#[cfg(test)]
mod tests;
