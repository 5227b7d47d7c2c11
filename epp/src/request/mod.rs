//! Bytes to [`InferenceRequest`]: which API a request speaks is told by its path, what it asks for
//! by one scan of its body.
//!
//! A parser is one file and one line in [`PARSERS`]. The longest path suffix wins, and a suffix
//! counts only from a `/` on, so `/my-completions` is not a completion. Paths that no parser knows,
//! and requests without a body, pass through: they are picked by load alone and their bodies are
//! never looked at.
//!
//! Parsers are strict about what the picker needs (a JSON object with a model name) and lenient
//! about everything else: a field of the wrong type is the worker's to refuse, with the worker's
//! own message.

mod openai;
pub mod text;

use std::ops::Range;

use pointsman_proto::prompt::Prompt;

/// What the picker needs to know of a request.
#[derive(Clone, Debug, PartialEq)]
pub struct InferenceRequest {
    pub kind: RequestKind,
    /// The model as the client names it; empty where the request passes through.
    pub model: String,
    /// Where the model's JSON string lies in the body, quotes included, so that a rewrite can
    /// splice it.
    pub model_span: Option<Range<usize>>,
    /// Whether the client asked for server-sent events.
    pub stream: bool,
    /// What is to be computed; `None` where it is missing or has no shape that the picker knows. Of
    /// several prompts in one request it is the first, because one pick serves them all.
    pub prompt: Option<Prompt>,
    /// Keeps the prefix cache of this client apart from others'.
    pub cache_salt: Option<String>,
    pub max_tokens: Option<u32>,
}

impl InferenceRequest {
    /// A request that is routed without being understood.
    pub fn passthrough() -> Self {
        Self {
            kind: RequestKind::Passthrough,
            model: String::new(),
            model_span: None,
            stream: false,
            prompt: None,
            cache_salt: None,
            max_tokens: None,
        }
    }
}

/// The API that a request speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum RequestKind {
    Chat,
    Completion,
    Passthrough,
}

/// Why a body cannot be read. Both are the client's to mend.
#[derive(Debug, thiserror::Error)]
pub enum ParseError {
    /// The text says where in the body.
    #[error("error unmarshaling request bodyMap: {0}")]
    Json(#[from] serde_json::Error),
    #[error("model not found in request body")]
    ModelMissing,
}

/// Reads the body of one API.
trait Parser: Sync {
    /// The path suffixes of the API, without a leading slash.
    fn path_suffixes(&self) -> &'static [&'static str];

    fn parse(&self, body: &[u8]) -> Result<InferenceRequest, ParseError>;
}

/// Every API that the picker understands. A new parser is a file and a line here.
const PARSERS: &[&dyn Parser] = &[&openai::ChatCompletions, &openai::Completions];

/// Reads one request from its method, its path (a query is ignored) and its body.
pub fn parse(method: &str, path: &str, body: &[u8]) -> Result<InferenceRequest, ParseError> {
    match parser_of(method, path) {
        Some(parser) => parser.parse(body),
        None => Ok(InferenceRequest::passthrough()),
    }
}

fn parser_of(method: &str, path: &str) -> Option<&'static dyn Parser> {
    if method != "POST" {
        return None;
    }
    let path = path.split(['?', '#']).next().unwrap_or_default();
    let matches = PARSERS.iter().filter_map(|parser| {
        let suffixes = parser
            .path_suffixes()
            .iter()
            .filter(|suffix| ends_with(path, suffix));
        suffixes
            .map(|suffix| suffix.len())
            .max()
            .map(|length| (length, *parser))
    });
    matches
        .max_by_key(|(length, _)| *length)
        .map(|(_, parser)| parser)
}

/// Whether the path ends in whole segments equal to the suffix.
fn ends_with(path: &str, suffix: &str) -> bool {
    path.strip_suffix(suffix)
        .is_some_and(|rest| rest.is_empty() || rest.ends_with('/'))
}

#[cfg(test)]
mod tests {
    use super::*;

    const CHAT: &[u8] = br#"{"model":"m","messages":[{"role":"user","content":"hi"}]}"#;

    fn kind(method: &str, path: &str) -> RequestKind {
        parse(method, path, CHAT).expect("a readable body").kind
    }

    #[test]
    fn longest_suffix_of_whole_segments_wins() {
        assert_eq!(kind("POST", "/v1/chat/completions"), RequestKind::Chat);
        assert_eq!(
            kind("POST", "/tenant/a/v1/chat/completions?x=/v1/completions"),
            RequestKind::Chat
        );
        assert_eq!(kind("POST", "/v1/completions"), RequestKind::Completion);
        assert_eq!(kind("POST", "/v1/my-completions"), RequestKind::Passthrough);
    }

    #[test]
    fn what_no_parser_knows_passes_unread() {
        for (method, path) in [
            ("GET", "/v1/models"),
            ("GET", "/v1/completions"),
            ("POST", "/"),
            ("", ""),
        ] {
            let request = parse(method, path, b"\xff not json").expect("not read");
            assert_eq!(request, InferenceRequest::passthrough(), "{method} {path}");
        }
    }
}
