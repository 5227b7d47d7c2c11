//! Finds the token usage in a response without parsing the response.
//!
//! A worker puts its usage last: in the final JSON members of a whole answer, and in the last
//! server-sent event before `data: [DONE]` of a streamed one. So it is enough to keep the last
//! [`TAIL_BYTES`] of what went by and to look for the last usage member in them once, when the
//! response ends. Anthropic's messages state the prompt's tokens in the first event and only the
//! generated ones in the last, so the first [`HEAD_BYTES`] are kept, too. Chunk borders do not
//! matter because head and tail are one buffer each. A member's name inside generated text cannot
//! be mistaken for it, since JSON escapes its quotes.
//!
//! | API | member | prompt, generated, cached |
//! |---|---|---|
//! | OpenAI completions and chat, vLLM generate | `usage` | `prompt_tokens`, `completion_tokens`, `prompt_tokens_details.cached_tokens` |
//! | OpenAI responses | `usage` | `input_tokens`, `output_tokens`, `input_tokens_details.cached_tokens` |
//! | Anthropic messages | `usage` | `input_tokens` + both cache members, `output_tokens`, `cache_read_input_tokens` |
//! | SGLang generate | `meta_info` | `prompt_tokens`, `completion_tokens`, `cached_tokens` |
//!
//! A usage block that lies further from the end than the tail is not found, and the request goes
//! without token counts. So does a gRPC response, whose frames are no JSON.

use memchr::memmem;
use serde::Deserialize;

/// How much of the end of a response is kept. A usage block is some 200 bytes; what workers put
/// after it (`prompt_logprobs`, `kv_transfer_params`, `[DONE]`) fits beside it.
pub const TAIL_BYTES: usize = 4096;

/// How much of the start of a response is kept: the first event of Anthropic's messages and what
/// stands before it.
pub const HEAD_BYTES: usize = 1024;

/// Tokens of one exchange, as the worker counted them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TokenUsage {
    pub prompt_tokens: u64,
    pub completion_tokens: u64,
    /// Prompt tokens served from the worker's prefix cache; `None` where the worker does not say.
    pub cached_tokens: Option<u64>,
}

impl TokenUsage {
    /// Prompt and generated tokens together.
    pub fn total_tokens(&self) -> u64 {
        self.prompt_tokens.saturating_add(self.completion_tokens)
    }
}

/// Start and end of a byte stream: the first [`HEAD_BYTES`], at least the last [`TAIL_BYTES`], and
/// never more than twice as much of the end.
#[derive(Debug, Default)]
pub struct ResponseEnds {
    head: Vec<u8>,
    tail: Vec<u8>,
}

impl ResponseEnds {
    /// Appends a chunk, forgetting what is too far from the end. Costs at most two copies of each
    /// byte kept.
    pub fn push(&mut self, chunk: &[u8]) {
        if self.head.len() < HEAD_BYTES {
            let missing = chunk.len().min(HEAD_BYTES - self.head.len());
            self.head.extend_from_slice(&chunk[..missing]);
        }
        let kept = &chunk[chunk.len().saturating_sub(TAIL_BYTES)..];
        if kept.len() == TAIL_BYTES {
            self.tail.clear();
        } else if self.tail.len() + kept.len() > 2 * TAIL_BYTES {
            self.tail.drain(..self.tail.len() - TAIL_BYTES);
        }
        self.tail.extend_from_slice(kept);
    }

    /// The last usage block of the tail, with the prompt's tokens from the head where the tail does
    /// not state them.
    pub fn usage(&self) -> Option<TokenUsage> {
        let last = last_member(&self.tail)?;
        if let Some(usage) = last.whole() {
            return Some(usage);
        }
        let first = first_member(&self.head)?;
        Counted {
            prompt: first.prompt,
            cached: last.cached.or(first.cached),
            ..last
        }
        .whole()
    }

    /// Whether the stream of events closed with `[DONE]`, which is an event of no token.
    pub fn is_done_marked(&self) -> bool {
        self.tail.trim_ascii_end().ends_with(b"[DONE]")
    }
}

const USAGE_KEY: &[u8] = b"\"usage\"";
const META_INFO_KEY: &[u8] = b"\"meta_info\"";

/// What one block states.
#[derive(Clone, Copy, Debug)]
struct Counted {
    prompt: Option<u64>,
    generated: Option<u64>,
    cached: Option<u64>,
}

impl Counted {
    /// A usage needs the prompt's tokens; nothing generated is none.
    fn whole(self) -> Option<TokenUsage> {
        Some(TokenUsage {
            prompt_tokens: self.prompt?,
            completion_tokens: self.generated.unwrap_or(0),
            cached_tokens: self.cached,
        })
    }
}

/// The last block of `bytes` that counts anything, under either name.
fn last_member(bytes: &[u8]) -> Option<Counted> {
    let usage = last_under(bytes, USAGE_KEY);
    usage.or_else(|| last_under(bytes, META_INFO_KEY))
}

/// The first `usage` block of `bytes` that counts anything.
fn first_member(bytes: &[u8]) -> Option<Counted> {
    memmem::find_iter(bytes, USAGE_KEY)
        .find_map(|start| parse_member(&bytes[start + USAGE_KEY.len()..]))
}

fn last_under(bytes: &[u8], key: &[u8]) -> Option<Counted> {
    let mut end = bytes.len();
    while let Some(start) = memmem::rfind(&bytes[..end], key) {
        if let Some(counted) = parse_member(&bytes[start + key.len()..]) {
            return Some(counted);
        }
        end = start;
    }
    None
}

/// Parses `: {...}` and ignores what follows the object. `None` where it counts nothing.
fn parse_member(after_key: &[u8]) -> Option<Counted> {
    let value = after_key.trim_ascii_start().strip_prefix(b":")?;
    let mut stream = serde_json::Deserializer::from_slice(value).into_iter::<UsageMember>();
    let member = stream.next()?.ok()?;
    let details = member.prompt_tokens_details.or(member.input_tokens_details);
    let cached = details.and_then(|details| details.cached_tokens);
    // Anthropic counts what came from the cache, or went into it, beside the input and not in it.
    let beside = member
        .cache_read_input_tokens
        .unwrap_or(0)
        .saturating_add(member.cache_creation_input_tokens.unwrap_or(0));
    let input = member
        .input_tokens
        .map(|input| input.saturating_add(beside));
    let counted = Counted {
        prompt: member.prompt_tokens.or(input),
        generated: member.completion_tokens.or(member.output_tokens),
        cached: cached
            .or(member.cache_read_input_tokens)
            .or(member.cached_tokens),
    };
    (counted.prompt.is_some() || counted.generated.is_some()).then_some(counted)
}

/// All spellings at once; which ones are there tells the API.
#[derive(Deserialize)]
struct UsageMember {
    prompt_tokens: Option<u64>,
    completion_tokens: Option<u64>,
    prompt_tokens_details: Option<UsageDetails>,
    input_tokens: Option<u64>,
    output_tokens: Option<u64>,
    input_tokens_details: Option<UsageDetails>,
    cache_read_input_tokens: Option<u64>,
    cache_creation_input_tokens: Option<u64>,
    cached_tokens: Option<u64>,
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
        let mut ends = ResponseEnds::default();
        for chunk in chunks {
            ends.push(chunk);
        }
        ends.usage()
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

    fn counted(prompt_tokens: u64, completion_tokens: u64, cached_tokens: u64) -> TokenUsage {
        TokenUsage {
            prompt_tokens,
            completion_tokens,
            cached_tokens: Some(cached_tokens),
        }
    }

    #[test]
    fn finds_usage_of_the_responses_api() {
        let body = br#"data: {"type":"response.completed","response":{"usage":{"input_tokens":36,
            "input_tokens_details":{"cached_tokens":16},"output_tokens":87,"output_tokens_details":{"reasoning_tokens":0},
            "total_tokens":123}}}"#;
        assert_eq!(usage_of(&[body]), Some(counted(36, 87, 16)));
    }

    #[test]
    fn joins_the_first_and_the_last_event_of_anthropics_messages() {
        let first = br#"event: message_start
data: {"type":"message_start","message":{"id":"m","content":[],"usage":{"input_tokens":25,"cache_read_input_tokens":100,"cache_creation_input_tokens":5,"output_tokens":1}}}

"#;
        let last = br#"event: message_delta
data: {"type":"message_delta","delta":{"stop_reason":"end_turn"},"usage":{"output_tokens":15}}

"#;
        let filler = vec![b'.'; 3 * TAIL_BYTES];
        let expected = Some(counted(130, 15, 100));
        assert_eq!(usage_of(&[first, last]), expected);
        assert_eq!(usage_of(&[first, &filler, last]), expected);
        assert_eq!(usage_of(&[last]), None, "the prompt's tokens are unknown");
    }

    #[test]
    fn finds_meta_info_of_sglang() {
        let body = br#"{"text":"hi","meta_info":{"id":"x","finish_reason":{"type":"length"},"prompt_tokens":5,"completion_tokens":7,"cached_tokens":4}}"#;
        assert_eq!(usage_of(&[body]), Some(counted(5, 7, 4)));
    }

    #[test]
    fn knows_the_closing_mark_of_a_stream() {
        let mut ends = ResponseEnds::default();
        ends.push(b"data: {}\n\ndata: [DO");
        assert!(!ends.is_done_marked());
        ends.push(b"NE]\n\n");
        assert!(ends.is_done_marked());
    }

    #[test]
    fn tail_is_bounded() {
        let mut ends = ResponseEnds::default();
        for _ in 0..1000 {
            ends.push(&[b'x'; 1000]);
            assert!(ends.tail.len() <= 2 * TAIL_BYTES);
            assert!(ends.head.len() <= HEAD_BYTES);
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
