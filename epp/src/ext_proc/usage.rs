//! Finds the token usage at the end of a response without parsing the response.
//!
//! An OpenAI-compatible worker puts its `usage` object last: in the final JSON members of a whole
//! answer, and in the last server-sent event before `data: [DONE]` of a streamed one. So it is
//! enough to keep the last [`TAIL_BYTES`] of what went by and to look for the last `"usage"` member
//! in them once, when the response ends. Chunk borders do not matter because the tail is one
//! buffer. A `"usage"` inside generated text cannot be mistaken for it, since JSON escapes its
//! quotes.
//!
//! A usage block that lies further from the end than the tail is not found, and the request goes
//! without token counts.

use serde::Deserialize;

/// How much of the end of a response is kept. A usage block is some 200 bytes; what workers put
/// after it (`prompt_logprobs`, `kv_transfer_params`, `[DONE]`) fits beside it.
pub const TAIL_BYTES: usize = 4096;

/// Tokens of one exchange, as the worker counted them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TokenUsage {
    pub prompt_tokens: u64,
    pub completion_tokens: u64,
    /// Prompt tokens served from the worker's prefix cache; `None` where the worker does not say.
    pub cached_tokens: Option<u64>,
}

/// The end of a byte stream: at least the last [`TAIL_BYTES`] of what was pushed, never more than
/// twice as much.
#[derive(Debug, Default)]
pub struct ResponseTail {
    bytes: Vec<u8>,
}

impl ResponseTail {
    /// Appends a chunk, forgetting what is too far from the end. Costs at most two copies of each
    /// byte kept.
    pub fn push(&mut self, chunk: &[u8]) {
        let kept = &chunk[chunk.len().saturating_sub(TAIL_BYTES)..];
        if kept.len() == TAIL_BYTES {
            self.bytes.clear();
        } else if self.bytes.len() + kept.len() > 2 * TAIL_BYTES {
            self.bytes.drain(..self.bytes.len() - TAIL_BYTES);
        }
        self.bytes.extend_from_slice(kept);
    }

    /// The last usage block in the tail.
    pub fn usage(&self) -> Option<TokenUsage> {
        let mut end = self.bytes.len();
        while let Some(start) = rfind(&self.bytes[..end], USAGE_KEY) {
            if let Some(usage) = parse_member(&self.bytes[start + USAGE_KEY.len()..]) {
                return Some(usage);
            }
            end = start;
        }
        None
    }
}

const USAGE_KEY: &[u8] = b"\"usage\"";

/// Position of the last occurrence of `needle`.
fn rfind(haystack: &[u8], needle: &[u8]) -> Option<usize> {
    haystack
        .windows(needle.len())
        .rposition(|window| window == needle)
}

/// Parses `: {...}` and ignores what follows the object.
fn parse_member(after_key: &[u8]) -> Option<TokenUsage> {
    let value = after_key.trim_ascii_start().strip_prefix(b":")?;
    let mut stream = serde_json::Deserializer::from_slice(value).into_iter::<UsageMember>();
    let member = stream.next()?.ok()?;
    let details = member.prompt_tokens_details.or(member.input_tokens_details);
    Some(TokenUsage {
        prompt_tokens: member.prompt_tokens.or(member.input_tokens)?,
        completion_tokens: member
            .completion_tokens
            .or(member.output_tokens)
            .unwrap_or(0),
        cached_tokens: details.and_then(|details| details.cached_tokens),
    })
}

/// `usage` of chat and text completions, and the `input`/`output` spelling of the responses API.
#[derive(Deserialize)]
struct UsageMember {
    prompt_tokens: Option<u64>,
    completion_tokens: Option<u64>,
    prompt_tokens_details: Option<UsageDetails>,
    input_tokens: Option<u64>,
    output_tokens: Option<u64>,
    input_tokens_details: Option<UsageDetails>,
}

#[derive(Deserialize)]
struct UsageDetails {
    cached_tokens: Option<u64>,
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn usage_of(chunks: &[&[u8]]) -> Option<TokenUsage> {
        let mut tail = ResponseTail::default();
        for chunk in chunks {
            tail.push(chunk);
        }
        tail.usage()
    }

    const SSE_END: &[u8] = b"data: {\"id\":\"x\",\"choices\":[{\"delta\":{\"content\":\"say \\\"usage\\\": {}\"}}],\"usage\":null}\n\n\
        data: {\"choices\":[],\"usage\":{\"prompt_tokens\":7,\"total_tokens\":17,\"completion_tokens\":10,\
        \"prompt_tokens_details\":{\"cached_tokens\":4}}}\n\ndata: [DONE]\n\n";

    #[test]
    fn finds_usage_of_a_streamed_answer() {
        let expected = TokenUsage {
            prompt_tokens: 7,
            completion_tokens: 10,
            cached_tokens: Some(4),
        };
        assert_eq!(usage_of(&[SSE_END]), Some(expected));
    }

    #[test]
    fn finds_usage_of_a_whole_answer() {
        let body =
            br#"{"choices":[{"text":"hi"}],"usage": {"prompt_tokens": 5, "completion_tokens": 2,
            "prompt_tokens_details": null}, "kv_transfer_params": null}"#;
        let expected = TokenUsage {
            prompt_tokens: 5,
            completion_tokens: 2,
            cached_tokens: None,
        };
        assert_eq!(usage_of(&[body]), Some(expected));
    }

    #[test]
    fn takes_the_last_of_several_and_skips_null() {
        let body =
            b"\"usage\":{\"prompt_tokens\":1}\n\"usage\":{\"prompt_tokens\":2}\n\"usage\":null";
        assert_eq!(usage_of(&[body]).map(|usage| usage.prompt_tokens), Some(2));
    }

    #[test]
    fn goes_without_when_there_is_none_or_it_is_cut() {
        assert_eq!(usage_of(&[b"data: [DONE]\n\n"]), None);
        assert_eq!(usage_of(&[b"\"usage\":{\"prompt_tokens\":1"]), None);
        assert_eq!(usage_of(&[b"\"usage\""]), None);
        assert_eq!(usage_of(&[]), None);
    }

    #[test]
    fn tail_is_bounded() {
        let mut tail = ResponseTail::default();
        for _ in 0..1000 {
            tail.push(&[b'x'; 1000]);
            assert!(tail.bytes.len() <= 2 * TAIL_BYTES);
        }
    }

    proptest! {
        #[test]
        fn chunk_borders_do_not_matter(
            filler in 0_usize..10_000,
            cuts in prop::collection::vec(0_usize..12_000, 0..20),
        ) {
            let mut body = vec![b'.'; filler];
            body.extend_from_slice(SSE_END);
            let mut borders: Vec<usize> = cuts.into_iter().map(|cut| cut.min(body.len())).collect();
            borders.extend([0, body.len()]);
            borders.sort_unstable();
            let chunks: Vec<&[u8]> = borders.windows(2).map(|pair| &body[pair[0]..pair[1]]).collect();
            prop_assert_eq!(usage_of(&chunks), usage_of(&[&body]));
            prop_assert_eq!(usage_of(&chunks).map(|usage| usage.completion_tokens), Some(10));
        }
    }
}
