//! Keys of a prompt without its tokens: a chain over its bytes.
//!
//! Blocks have [`BLOCK_BYTES`] bytes. Each is chained like a block of token ids is, its bytes taken
//! as 32-bit words, so that an equal key proves an equal prefix here as it does there. The root is
//! the request key's own root (model, adapter, salt) and one block of no tokens whose extras are a
//! mark and the hash of what the prompt is rendered under; a block of tokens is never without
//! tokens, so that no key of text can equal a key of tokens.
//!
//! All keys of a prompt are computed at once: the pick that follows nearly every lookup records
//! them to the last. They cost about 30 ns a block, 7 µs for 4,000 tokens.

use pointsman_proto::block_hash::{KeyScope, RequestKey};
use xxhash_rust::xxh3::Xxh3Default;

/// Tokens that a block stands for: the block size of vLLM's default and of the field's index.
pub const BLOCK_TOKENS: u32 = 16;

/// Bytes of a block: 16 tokens at 4 bytes a token, which is the field's estimate for text.
pub const BLOCK_BYTES: usize = BLOCK_TOKENS as usize * 4;

/// Blocks of one prompt that are keyed: 4 MiB of text, a million tokens. What comes after them is
/// counted and otherwise as if it were never cached.
pub const PROMPT_BLOCKS_MAX: usize = 1 << 16;

const WORDS: usize = BLOCK_BYTES / size_of::<u32>();

/// Marks a root as one of text. Its last byte is the version of the byte stream that is chained.
const TEXT_MARK: &[u8] = b"text\x01";

/// The keys of one prompt, and the buffers in which they are made. Reused, it allocates nothing.
///
/// First come the settings, then [`begin_text`](Self::begin_text), then the text, each in pieces of
/// any size.
pub struct TextKeys {
    keys: Vec<RequestKey>,
    parent: Option<RequestKey>,
    settings: Xxh3Default,
    block: [u8; BLOCK_BYTES],
    filled: usize,
    bytes: usize,
}

impl Default for TextKeys {
    fn default() -> Self {
        Self {
            keys: Vec::new(),
            parent: None,
            settings: Xxh3Default::new(),
            block: [0; BLOCK_BYTES],
            filled: 0,
            bytes: 0,
        }
    }
}

impl std::fmt::Debug for TextKeys {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter
            .debug_struct("TextKeys")
            .field("blocks", &self.keys.len())
            .field("bytes", &self.bytes)
            .finish_non_exhaustive()
    }
}

impl TextKeys {
    /// Forgets the prompt before.
    pub fn clear(&mut self) {
        self.keys.clear();
        self.parent = None;
        self.settings.reset();
        self.filled = 0;
        self.bytes = 0;
    }

    /// Adds to what the whole prompt depends on and that stands in no one place of it: tools,
    /// template arguments, the kind of prompt.
    pub fn push_setting(&mut self, piece: &[u8]) {
        self.settings.update(piece);
    }

    /// Ends the settings.
    pub fn begin_text(&mut self, scope: &KeyScope<'_>) {
        let mut extras = [0_u8; TEXT_MARK.len() + size_of::<u128>()];
        let (mark, digest) = extras.split_at_mut(TEXT_MARK.len());
        mark.copy_from_slice(TEXT_MARK);
        digest.copy_from_slice(&self.settings.digest128().to_le_bytes());
        self.parent = Some(RequestKey::root(scope).child(&[], &extras));
    }

    /// Adds text. Whole blocks are chained where they lie.
    pub fn push_text(&mut self, mut piece: &[u8]) {
        self.bytes = self.bytes.saturating_add(piece.len());
        if self.filled > 0 {
            let taken = piece.len().min(BLOCK_BYTES - self.filled);
            let (now, rest) = piece.split_at(taken);
            self.block[self.filled..self.filled + taken].copy_from_slice(now);
            self.filled += taken;
            piece = rest;
            if self.filled < BLOCK_BYTES {
                return;
            }
            self.filled = 0;
            let block = self.block;
            self.chain(&block);
        }
        let (blocks, rest) = piece.as_chunks::<BLOCK_BYTES>();
        for block in blocks {
            self.chain(block);
        }
        self.block[..rest.len()].copy_from_slice(rest);
        self.filled = rest.len();
    }

    /// The key of each whole block.
    pub fn keys(&self) -> &[RequestKey] {
        &self.keys
    }

    /// Bytes of the text, a last partial block and all past [`PROMPT_BLOCKS_MAX`] included.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// The tokens that the text is estimated to have.
    pub fn estimated_tokens(&self) -> u32 {
        u32::try_from(self.bytes / (BLOCK_BYTES / BLOCK_TOKENS as usize)).unwrap_or(u32::MAX)
    }

    /// The tokens of the first `blocks` blocks, where the whole prompt has `prompt_tokens`: in
    /// proportion to the bytes, rounded down to whole blocks.
    pub fn tokens_of(&self, blocks: u32, prompt_tokens: u32) -> u32 {
        let matched_bytes = u64::from(blocks) * BLOCK_BYTES as u64;
        let tokens = matched_bytes * u64::from(prompt_tokens) / (self.bytes as u64).max(1);
        let whole = tokens / u64::from(BLOCK_TOKENS) * u64::from(BLOCK_TOKENS);
        u32::try_from(whole).map_or(prompt_tokens, |whole| whole.min(prompt_tokens))
    }

    fn chain(&mut self, block: &[u8; BLOCK_BYTES]) {
        let Some(parent) = self.parent else { return };
        if self.keys.len() == PROMPT_BLOCKS_MAX {
            return;
        }
        let mut words = [0_u32; WORDS];
        let (quads, _) = block.as_chunks::<4>();
        for (word, quad) in words.iter_mut().zip(quads) {
            *word = u32::from_le_bytes(*quad);
        }
        let key = parent.child(&words, &[]);
        self.keys.push(key);
        self.parent = Some(key);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SCOPE: KeyScope<'static> = KeyScope {
        model: "m",
        adapter: None,
        cache_salt: None,
    };

    fn keyed(scope: &KeyScope<'_>, settings: &[u8], pieces: &[&[u8]]) -> Vec<RequestKey> {
        let mut keys = TextKeys::default();
        keys.clear();
        keys.push_setting(settings);
        keys.begin_text(scope);
        for piece in pieces {
            keys.push_text(piece);
        }
        keys.keys().to_vec()
    }

    #[test]
    fn scope_and_settings_are_in_every_key() {
        let text = [b'a'; 3 * BLOCK_BYTES];
        let plain = keyed(&SCOPE, b"", &[&text]);
        assert_eq!(plain.len(), 3);
        let salted = KeyScope {
            cache_salt: Some("s"),
            ..SCOPE
        };
        for other in [
            keyed(&salted, b"", &[&text]),
            keyed(&SCOPE, b"tool", &[&text]),
        ] {
            assert!(plain.iter().all(|key| !other.contains(key)));
        }
    }

    #[test]
    fn a_key_of_text_is_no_key_of_tokens() {
        let tokens = [u32::from_le_bytes(*b"aaaa"); WORDS];
        let text = keyed(&SCOPE, b"", &[&[b'a'; BLOCK_BYTES]]);
        assert_ne!(text[0], RequestKey::root(&SCOPE).child(&tokens, &[]));
    }

    #[test]
    fn tokens_are_in_proportion_and_whole_blocks() {
        let mut keys = TextKeys::default();
        keys.begin_text(&SCOPE);
        keys.push_text(&[b'x'; 10 * BLOCK_BYTES + 20]);
        assert_eq!(keys.estimated_tokens(), 165);
        assert_eq!(keys.tokens_of(5, 165), 80);
        assert_eq!(keys.tokens_of(10, 330), 320, "twice as dense");
        assert_eq!(keys.tokens_of(u32::MAX, 165), 165);
        keys.clear();
        assert_eq!((keys.bytes(), keys.tokens_of(3, 100)), (0, 100));
    }

    #[test]
    fn what_is_past_the_bound_is_counted_only() {
        let mut keys = TextKeys::default();
        keys.begin_text(&SCOPE);
        let block = [b'x'; BLOCK_BYTES];
        for _ in 0..PROMPT_BLOCKS_MAX + 2 {
            keys.push_text(&block);
        }
        assert_eq!(keys.keys().len(), PROMPT_BLOCKS_MAX);
        assert_eq!(keys.bytes(), (PROMPT_BLOCKS_MAX + 2) * BLOCK_BYTES);
    }

    proptest! {
        #[test]
        fn pieces_do_not_matter_and_a_prefix_has_the_first_keys(
            text in prop::collection::vec(any::<u8>(), 0..600),
            cuts in prop::collection::vec(0_usize..600, 0..8),
            more in prop::collection::vec(any::<u8>(), 0..200),
        ) {
            let whole = keyed(&SCOPE, b"", &[&text]);
            prop_assert_eq!(whole.len(), text.len() / BLOCK_BYTES);
            let mut borders: Vec<usize> = cuts.iter().map(|cut| *cut.min(&text.len())).collect();
            borders.extend([0, text.len()]);
            borders.sort_unstable();
            let pieces: Vec<&[u8]> = borders.windows(2).map(|pair| &text[pair[0]..pair[1]]).collect();
            prop_assert_eq!(&keyed(&SCOPE, b"", &pieces), &whole);
            let longer = keyed(&SCOPE, b"", &[&text, &more]);
            prop_assert_eq!(&longer[..whole.len()], &whole[..]);
        }
    }
}
