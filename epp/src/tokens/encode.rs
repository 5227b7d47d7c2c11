//! Runs the models' encoders over what of a prompt was not encoded before.
//!
//! A prompt is rendered and cut into pieces whose ids do not depend on one another; the pieces seen
//! before cost a hash, a comparison and a copy of their ids. What is left decides where the rest is
//! done: encoding takes a microsecond or more a token, so a new turn is encoded where it arrives,
//! which is cheaper than handing it to another thread and back, and a long unseen text goes to the
//! [`Pool`], where it holds up nobody. The lock on the cache is held to find and to put pieces, never
//! to compare, hash or encode them.

use std::borrow::Cow;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use pointsman_proto::prompt::{Prompt, PromptEncoder, PromptError, SpecialFrame};
use serde_json::Value;

use super::TokensStats;
use super::cache::{Piece, PieceCache};
use super::pool::{Pool, PoolError};
use super::render::RenderClient;
use super::stats::Counters;

/// What an object or an array of a conversation costs to render, in bytes of text that cost as much.
const CONTAINER_BYTES: usize = 256;

/// Bounds of the room.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct TokenLimits {
    /// Prompts of up to this many bytes are rendered and looked up where they arrive. Longer ones
    /// go to the pool as they are.
    pub inline_prompt_bytes_max: usize,
    /// Up to this many bytes of unseen text are encoded where they arrive. More goes to the pool.
    pub inline_bytes_max: usize,
    /// Works of the pool that run at the same time.
    pub running_max: usize,
    /// Works that wait for others to end. One more is refused as [`Unavailable::Busy`].
    pub waiting_max: usize,
    /// How long the pool may take before the request goes on as [`Unavailable::Deadline`].
    pub deadline: Duration,
    /// Bytes of texts and ids remembered. What was not used for longest goes first.
    pub cache_bytes_max: usize,
}

impl Default for TokenLimits {
    fn default() -> Self {
        Self {
            inline_prompt_bytes_max: 512 << 10,
            inline_bytes_max: 4 << 10,
            running_max: std::thread::available_parallelism().map_or(2, usize::from),
            waiting_max: 64,
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
    #[error("the remote tokenizer failed: {0}")]
    Remote(String),
    #[error("the remote tokenizer failed before and is left alone for a while")]
    RemoteDown,
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
            Self::Remote(_) => "remote_failed",
            Self::RemoteDown => "remote_down",
            Self::Failed(_) => "failed",
        }
    }
}

impl From<PoolError> for Unavailable {
    fn from(error: PoolError) -> Self {
        match error {
            PoolError::Full => Self::Busy,
            PoolError::Deadline => Self::Deadline,
            PoolError::Panicked(_) => Self::Failed(error.to_string()),
        }
    }
}

impl From<PromptError> for Unavailable {
    fn from(error: PromptError) -> Self {
        Self::Failed(error.to_string())
    }
}

/// The encoders and what they did so far.
#[derive(Debug)]
pub struct Tokens {
    limits: TokenLimits,
    by_model: HashMap<String, usize>,
    shared: Arc<Shared>,
    pool: Pool,
    /// Asked for models without an encoder of their own.
    remote: Option<Arc<RenderClient>>,
}

/// What the pool's works hold on to.
#[derive(Debug)]
struct Shared {
    encoders: Vec<Arc<PromptEncoder>>,
    cache: Mutex<PieceCache>,
    counters: Counters,
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
                cache: Mutex::new(PieceCache::new(limits.cache_bytes_max)),
                counters: Counters::default(),
            }),
            pool: Pool::new(limits.running_max, limits.waiting_max, limits.deadline),
            remote: None,
        }
    }

    /// Asks a remote tokenizer about models that have no encoder here.
    #[must_use]
    pub fn with_remote(mut self, remote: Option<Arc<RenderClient>>) -> Self {
        self.remote = remote;
        self
    }

    /// The token ids of a prompt, as the model's worker will see them.
    pub async fn encode(&self, model: &str, prompt: &Prompt) -> Result<Arc<[u32]>, Unavailable> {
        if let Prompt::Tokens(tokens) = prompt {
            // Ids need no encoder, and whether the model knows them is for its worker to say.
            return Ok(Arc::from(tokens.as_slice()));
        }
        let outcome = match (self.place(model), &self.remote) {
            (Some(place), _) => self.encode_by(place, prompt).await,
            // Boxed, because the future of an HTTP exchange is many times as large as all else that a
            // request keeps, and few requests have one.
            (None, Some(remote)) => {
                Box::pin(remote.encode(model, prompt, self.limits.deadline)).await
            }
            (None, None) => Err(Unavailable::NoTokenizer),
        };
        self.shared.counters.count_outcome(&outcome);
        outcome
    }

    /// Whether prompts of this model can be encoded at all.
    pub fn knows(&self, model: &str) -> bool {
        self.place(model).is_some() || self.remote.is_some()
    }

    /// The counts as they are.
    pub fn stats(&self) -> TokensStats {
        let cache = self.shared.cache.lock();
        TokensStats {
            cache_bytes: cache.bytes() as u64,
            evicted: cache.evicted(),
            ..self.shared.counters.stats()
        }
    }

    fn place(&self, model: &str) -> Option<usize> {
        self.by_model
            .get(model)
            .or_else(|| self.by_model.get(""))
            .copied()
    }

    async fn encode_by(&self, place: usize, prompt: &Prompt) -> Result<Arc<[u32]>, Unavailable> {
        if prompt_bytes(prompt) > self.limits.inline_prompt_bytes_max {
            let prompt = prompt.clone();
            return self
                .encode_pooled(place, move |reader| reader.encode(&reader.text(&prompt)?))
                .await;
        }
        let text = {
            let reader = self.shared.reader(place)?;
            let text = reader.text(prompt)?;
            let parts = reader.look_up(&text);
            if parts.missing_bytes() <= self.limits.inline_bytes_max {
                return reader.fill(parts);
            }
            text.into_owned()
        };
        self.encode_pooled(place, move |reader| reader.encode(&text))
            .await
    }

    async fn encode_pooled(
        &self,
        place: usize,
        work: impl FnOnce(&Reader<'_>) -> Result<Arc<[u32]>, Unavailable> + Send + 'static,
    ) -> Result<Arc<[u32]>, Unavailable> {
        self.shared.counters.count_pooled();
        let shared = Arc::clone(&self.shared);
        self.pool.run(move || work(&shared.reader(place)?)).await?
    }
}

impl Shared {
    fn reader(&self, place: usize) -> Result<Reader<'_>, Unavailable> {
        let encoder = self.encoders.get(place).ok_or(Unavailable::NoTokenizer)?;
        Ok(Reader {
            shared: self,
            place,
            encoder,
        })
    }
}

/// One encoder at work.
struct Reader<'a> {
    shared: &'a Shared,
    place: usize,
    encoder: &'a PromptEncoder,
}

/// The text of a prompt.
struct PromptText<'p> {
    text: Cow<'p, str>,
    /// Whether the tokenizer adds its special tokens: a chat's are written by its template.
    special_tokens: bool,
}

impl PromptText<'_> {
    fn into_owned(self) -> PromptText<'static> {
        PromptText {
            text: Cow::Owned(self.text.into_owned()),
            special_tokens: self.special_tokens,
        }
    }
}

/// A text in its pieces.
struct Parts<'t> {
    parts: Vec<Part<'t>>,
    encoding: Encoding<'t>,
}

/// How special tokens that are not in the text come to its ids.
#[derive(Clone, Copy)]
enum Encoding<'t> {
    /// There are none.
    Plain,
    /// They are put around the ids of the parts.
    Framed(&'t SpecialFrame),
    /// The tokenizer does more than to put some around, so the text is one part and encoded with
    /// them.
    Whole,
}

struct Part<'t> {
    text: &'t str,
    hash: u64,
    known: Option<Arc<Piece>>,
}

impl Parts<'_> {
    fn missing_bytes(&self) -> usize {
        let missing = self.parts.iter().filter(|part| part.known.is_none());
        missing.map(|part| part.text.len()).sum()
    }
}

impl<'a> Reader<'a> {
    fn text<'p>(&self, prompt: &'p Prompt) -> Result<PromptText<'p>, Unavailable> {
        Ok(match prompt {
            Prompt::Chat(chat) => PromptText {
                text: Cow::Owned(self.encoder.render(chat)?),
                special_tokens: false,
            },
            Prompt::Text(text) => PromptText {
                text: Cow::Borrowed(text),
                special_tokens: true,
            },
            // Ids have been answered before, and are no text.
            Prompt::Tokens(_) => PromptText {
                text: Cow::Borrowed(""),
                special_tokens: false,
            },
        })
    }

    fn encode(&self, text: &PromptText<'_>) -> Result<Arc<[u32]>, Unavailable> {
        self.fill(self.look_up(text))
    }

    fn look_up<'t>(&self, text: &'t PromptText<'_>) -> Parts<'t>
    where
        'a: 't,
    {
        let encoding = match (text.special_tokens, self.encoder.special_frame()) {
            (false, _) => Encoding::Plain,
            (true, Some(frame)) => Encoding::Framed(frame),
            (true, None) => Encoding::Whole,
        };
        let number = self.number(encoding);
        let pieces = match encoding {
            Encoding::Plain | Encoding::Framed(_) => self.encoder.cuts().pieces(&text.text),
            Encoding::Whole => vec![&*text.text],
        };
        let part = |text: &'t str| Part {
            text,
            hash: Piece::hash(number, text),
            known: None,
        };
        let mut parts: Vec<Part<'t>> = pieces.into_iter().map(part).collect();
        {
            let mut cache = self.shared.cache.lock();
            for part in &mut parts {
                part.known = cache.get(part.hash);
            }
        }
        for part in &mut parts {
            let right = |piece: &Arc<Piece>| piece.is_for(number, part.text);
            part.known = part.known.take().filter(right);
        }
        Parts { parts, encoding }
    }

    /// The number under which pieces are remembered: whole texts with their special tokens apart
    /// from all others.
    fn number(&self, encoding: Encoding<'_>) -> usize {
        self.place << 1 | usize::from(matches!(encoding, Encoding::Whole))
    }

    /// Encodes what is not known, remembers it, and puts all ids together.
    fn fill(&self, mut parts: Parts<'_>) -> Result<Arc<[u32]>, Unavailable> {
        let text_bytes = parts.parts.iter().map(|part| part.text.len()).sum();
        self.shared
            .counters
            .count_text(text_bytes, parts.missing_bytes());
        let number = self.number(parts.encoding);
        let special_tokens = matches!(parts.encoding, Encoding::Whole);
        let mut new = Vec::new();
        for part in parts.parts.iter_mut().filter(|part| part.known.is_none()) {
            let ids = self.encoder.encode_text(part.text, special_tokens)?;
            let piece = Arc::new(Piece::new(number, part.text, ids.into()));
            new.push((part.hash, Arc::clone(&piece)));
            part.known = Some(piece);
        }
        if !new.is_empty() {
            let mut cache = self.shared.cache.lock();
            for (hash, piece) in new {
                cache.put(hash, piece);
            }
        }
        Ok(joined(&parts))
    }
}

/// The ids of all parts, with the frame around them. Those of a single part are shared.
fn joined(parts: &Parts<'_>) -> Arc<[u32]> {
    let (before, after): (&[u32], &[u32]) = match parts.encoding {
        Encoding::Plain | Encoding::Whole => (&[], &[]),
        Encoding::Framed(frame) => (&frame.before, &frame.after),
    };
    let known = || parts.parts.iter().filter_map(|part| part.known.as_ref());
    if let ([_], [], []) = (parts.parts.as_slice(), before, after)
        && let Some(only) = known().next()
    {
        return Arc::clone(only.ids());
    }
    let count: usize = known().map(|piece| piece.ids().len()).sum();
    let mut ids = Vec::with_capacity(before.len() + count + after.len());
    ids.extend_from_slice(before);
    for piece in known() {
        ids.extend_from_slice(piece.ids());
    }
    ids.extend_from_slice(after);
    ids.into()
}

/// What a prompt costs to render and to look up, in bytes: its text, and for a chat its containers.
/// An estimate from below, as a template adds its own text.
fn prompt_bytes(prompt: &Prompt) -> usize {
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
        Value::Array(items) => CONTAINER_BYTES + items.iter().map(value_bytes).sum::<usize>(),
        Value::Object(fields) => {
            let fields = fields
                .iter()
                .map(|(name, value)| name.len() + value_bytes(value));
            CONTAINER_BYTES + fields.sum::<usize>()
        }
        Value::Null | Value::Bool(_) | Value::Number(_) => 8,
    }
}

#[cfg(test)]
mod tests;
