//! Runs the models' encoders: short prompts where they arrive, long ones on a bounded blocking
//! pool.
//!
//! Encoding text takes about a microsecond a token. For a short prompt that is less than handing it
//! to another thread and back; for a long one it would hold up every other stream of its runtime
//! thread. The pool is bounded by permits that stay with the work, not with the waiter: an encoding
//! whose deadline passed still occupies its place until it is done, so late work cannot pile up
//! behind the deadline.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use parking_lot::Mutex;
use pointsman_proto::prompt::{Prompt, PromptEncoder, PromptError};
use serde_json::Value;
use tokio::sync::Semaphore;

use super::cache::{TextCache, TextKey};

/// Bounds of the room.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct TokenLimits {
    /// Prompts of up to this many bytes of text are encoded at once.
    pub inline_bytes_max: usize,
    /// Long prompts encoded at the same time. One more is refused as [`Unavailable::Busy`].
    pub concurrent_max: usize,
    /// How long a long prompt may take.
    pub deadline: Duration,
    /// Bytes of texts and ids remembered.
    pub cache_bytes_max: usize,
}

impl Default for TokenLimits {
    fn default() -> Self {
        Self {
            inline_bytes_max: 8 << 10,
            concurrent_max: 16,
            deadline: Duration::from_millis(500),
            cache_bytes_max: 64 << 20,
        }
    }
}

/// Why there are no token ids. The request goes on without them.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Unavailable {
    #[error("no tokenizer for the model")]
    NoTokenizer,
    #[error("too many long prompts are being tokenized")]
    Busy,
    #[error("tokenization took too long")]
    Deadline,
    /// The encoder refused the prompt. The worker will refuse it, too, and in its own words; epp
    /// does not answer for it.
    #[error("{0}")]
    Failed(String),
}

impl Unavailable {
    /// A short name for a metric's label.
    pub fn label(&self) -> &'static str {
        match self {
            Self::NoTokenizer => "no_tokenizer",
            Self::Busy => "busy",
            Self::Deadline => "deadline",
            Self::Failed(_) => "failed",
        }
    }
}

/// Counts since the start.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct TokensStats {
    pub encoded: u64,
    pub cache_hits: u64,
    pub busy: u64,
    pub deadline: u64,
    pub failed: u64,
}

/// The encoders and what they did so far.
#[derive(Debug)]
pub struct Tokens {
    limits: TokenLimits,
    by_model: HashMap<String, usize>,
    shared: Arc<Shared>,
    permits: Arc<Semaphore>,
}

/// What the blocking pool's work holds on to.
struct Shared {
    encoders: Vec<Arc<PromptEncoder>>,
    cache: Mutex<TextCache>,
    counters: Counters,
}

#[derive(Debug, Default)]
struct Counters {
    encoded: AtomicU64,
    cache_hits: AtomicU64,
    busy: AtomicU64,
    deadline: AtomicU64,
    failed: AtomicU64,
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter
            .debug_struct("Shared")
            .field("encoders", &self.encoders.len())
            .field("counters", &self.counters)
            .finish_non_exhaustive()
    }
}

impl Tokens {
    /// Encoders by model name; the one under `""` serves every model that has none of its own.
    pub fn new(
        encoders: impl IntoIterator<Item = (String, Arc<PromptEncoder>)>,
        limits: TokenLimits,
    ) -> Self {
        let (names, encoders): (Vec<String>, Vec<_>) = encoders.into_iter().unzip();
        let by_model = names
            .into_iter()
            .enumerate()
            .map(|(place, name)| (name, place))
            .collect();
        Self {
            limits,
            by_model,
            shared: Arc::new(Shared {
                encoders,
                cache: Mutex::new(TextCache::new(limits.cache_bytes_max)),
                counters: Counters::default(),
            }),
            permits: Arc::new(Semaphore::new(limits.concurrent_max)),
        }
    }

    /// The token ids of a prompt, as the model's worker will see them.
    pub async fn encode(&self, model: &str, prompt: &Prompt) -> Result<Arc<[u32]>, Unavailable> {
        if let Prompt::Tokens(tokens) = prompt {
            // Ids need no encoder, and whether the model knows them is for its worker to say.
            return Ok(Arc::from(tokens.as_slice()));
        }
        let place = self.place(model).ok_or(Unavailable::NoTokenizer)?;
        let outcome = if text_bytes(prompt) <= self.limits.inline_bytes_max {
            self.shared.encode(place, prompt)
        } else {
            self.encode_long(place, prompt.clone()).await
        };
        self.shared.count(&outcome);
        outcome
    }

    /// Whether prompts of this model can be encoded at all.
    pub fn knows(&self, model: &str) -> bool {
        self.place(model).is_some()
    }

    /// The counts as they are.
    pub fn stats(&self) -> TokensStats {
        let counters = &self.shared.counters;
        TokensStats {
            encoded: counters.encoded.load(Relaxed),
            cache_hits: counters.cache_hits.load(Relaxed),
            busy: counters.busy.load(Relaxed),
            deadline: counters.deadline.load(Relaxed),
            failed: counters.failed.load(Relaxed),
        }
    }

    fn place(&self, model: &str) -> Option<usize> {
        self.by_model
            .get(model)
            .or_else(|| self.by_model.get(""))
            .copied()
    }

    async fn encode_long(&self, place: usize, prompt: Prompt) -> Result<Arc<[u32]>, Unavailable> {
        let permit = Arc::clone(&self.permits)
            .try_acquire_owned()
            .map_err(|_| Unavailable::Busy)?;
        let shared = Arc::clone(&self.shared);
        let work = tokio::task::spawn_blocking(move || {
            let outcome = shared.encode(place, &prompt);
            drop(permit);
            outcome
        });
        match tokio::time::timeout(self.limits.deadline, work).await {
            Ok(Ok(outcome)) => outcome,
            Ok(Err(error)) => Err(Unavailable::Failed(error.to_string())),
            Err(_) => Err(Unavailable::Deadline),
        }
    }
}

impl Shared {
    fn encode(&self, place: usize, prompt: &Prompt) -> Result<Arc<[u32]>, Unavailable> {
        let encoder = self.encoders.get(place).ok_or(Unavailable::NoTokenizer)?;
        match prompt {
            Prompt::Chat(chat) => {
                let text = encoder.render(chat).map_err(|error| failed(&error))?;
                self.encode_text(encoder, place, &text, false)
            }
            Prompt::Text(text) => self.encode_text(encoder, place, text, true),
            Prompt::Tokens(tokens) => Ok(Arc::from(tokens.as_slice())),
        }
    }

    fn encode_text(
        &self,
        encoder: &PromptEncoder,
        place: usize,
        text: &str,
        special_tokens: bool,
    ) -> Result<Arc<[u32]>, Unavailable> {
        let key = TextKey {
            encoder: place,
            special_tokens,
            text,
        };
        let cached = self.cache.lock().get(&key);
        if let Some(ids) = cached {
            self.counters.cache_hits.fetch_add(1, Relaxed);
            return Ok(ids);
        }
        let ids: Arc<[u32]> = encoder
            .encode_text(text, special_tokens)
            .map_err(|error| failed(&error))?
            .into();
        self.cache.lock().put(&key, Arc::clone(&ids));
        Ok(ids)
    }

    fn count(&self, outcome: &Result<Arc<[u32]>, Unavailable>) {
        let counter = match outcome {
            Ok(_) => &self.counters.encoded,
            Err(Unavailable::NoTokenizer) => return,
            Err(Unavailable::Busy) => &self.counters.busy,
            Err(Unavailable::Deadline) => &self.counters.deadline,
            Err(Unavailable::Failed(_)) => &self.counters.failed,
        };
        counter.fetch_add(1, Relaxed);
    }
}

fn failed(error: &PromptError) -> Unavailable {
    Unavailable::Failed(error.to_string())
}

/// Bytes of text in a prompt: what decides whether it is long. An estimate from below for a chat,
/// whose template adds its own.
fn text_bytes(prompt: &Prompt) -> usize {
    match prompt {
        Prompt::Chat(chat) => {
            value_bytes(&chat.messages) + chat.tools.as_ref().map_or(0, value_bytes)
        }
        Prompt::Text(text) => text.len(),
        Prompt::Tokens(_) => 0,
    }
}

fn value_bytes(value: &Value) -> usize {
    match value {
        Value::String(text) => text.len(),
        Value::Array(items) => items.iter().map(value_bytes).sum(),
        Value::Object(fields) => fields
            .iter()
            .map(|(name, value)| name.len() + value_bytes(value))
            .sum(),
        Value::Null | Value::Bool(_) | Value::Number(_) => 8,
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use pointsman_proto::prompt::ChatPrompt;
    use serde_json::json;

    use super::*;

    /// A tokenizer of words, with a template that writes each message after its role.
    fn encoder() -> Arc<PromptEncoder> {
        let folder = tempfile::tempdir().unwrap();
        write_model(folder.path());
        Arc::new(PromptEncoder::load(folder.path()).unwrap())
    }

    fn write_model(folder: &Path) {
        let tokenizer = json!({
            "version": "1.0",
            "truncation": null,
            "padding": null,
            "added_tokens": [],
            "normalizer": null,
            "pre_tokenizer": {"type": "Whitespace"},
            "post_processor": null,
            "decoder": null,
            "model": {
                "type": "WordLevel",
                "vocab": {"<unk>": 0, "user": 1, "hello": 2, "world": 3},
                "unk_token": "<unk>"
            }
        });
        std::fs::write(folder.join("tokenizer.json"), tokenizer.to_string()).unwrap();
        let template = "{% for m in messages %}{{ m.role }} {{ m.content }} {% endfor %}";
        std::fs::write(folder.join("chat_template.jinja"), template).unwrap();
        std::fs::write(folder.join("tokenizer_config.json"), "{}").unwrap();
    }

    fn tokens(limits: TokenLimits) -> Tokens {
        Tokens::new([("model".to_owned(), encoder())], limits)
    }

    fn chat(content: &str) -> Prompt {
        Prompt::Chat(ChatPrompt::new(
            json!([{"role": "user", "content": content}]),
        ))
    }

    #[tokio::test]
    async fn chats_and_texts_are_encoded_and_remembered() {
        let tokens = tokens(TokenLimits::default());
        let ids = tokens.encode("model", &chat("hello world")).await.unwrap();
        assert_eq!(&*ids, [1, 2, 3]);
        let again = tokens.encode("model", &chat("hello world")).await.unwrap();
        assert_eq!(ids, again);
        let text = Prompt::Text("world hello".to_owned());
        assert_eq!(&*tokens.encode("model", &text).await.unwrap(), [3, 2]);
        let stats = tokens.stats();
        assert_eq!((stats.encoded, stats.cache_hits), (3, 1));
    }

    #[tokio::test]
    async fn token_ids_need_no_tokenizer_and_text_does() {
        let tokens = tokens(TokenLimits::default());
        let ids = Prompt::Tokens(vec![9, 8]);
        assert_eq!(&*tokens.encode("other", &ids).await.unwrap(), [9, 8]);
        let text = Prompt::Text("hello".to_owned());
        assert_eq!(
            tokens.encode("other", &text).await,
            Err(Unavailable::NoTokenizer)
        );
        let any = Tokens::new([(String::new(), encoder())], TokenLimits::default());
        assert_eq!(&*any.encode("other", &text).await.unwrap(), [2]);
    }

    #[tokio::test]
    async fn a_bad_conversation_fails_with_its_reason() {
        let tokens = tokens(TokenLimits::default());
        let bad = Prompt::Chat(ChatPrompt::new(json!("not an array")));
        let error = tokens.encode("model", &bad).await.unwrap_err();
        assert_eq!(error.label(), "failed");
        assert_eq!(tokens.stats().failed, 1);
    }

    #[tokio::test]
    async fn long_prompts_take_a_place_in_the_pool() {
        let long = Prompt::Text("hello ".repeat(100));
        let open = tokens(TokenLimits {
            inline_bytes_max: 16,
            ..TokenLimits::default()
        });
        assert_eq!(open.encode("model", &long).await.unwrap().len(), 100);
        let closed = tokens(TokenLimits {
            inline_bytes_max: 16,
            concurrent_max: 0,
            ..TokenLimits::default()
        });
        assert_eq!(closed.encode("model", &long).await, Err(Unavailable::Busy));
        assert_eq!(closed.stats().busy, 1);
        // Some hundred milliseconds of work against no time at all.
        let very_long = Prompt::Text("hello ".repeat(400_000));
        let late = tokens(TokenLimits {
            inline_bytes_max: 16,
            deadline: Duration::ZERO,
            ..TokenLimits::default()
        });
        assert_eq!(
            late.encode("model", &very_long).await,
            Err(Unavailable::Deadline)
        );
    }
}
