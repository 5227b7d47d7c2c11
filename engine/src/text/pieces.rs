//! The text of single tokens, decoded once and not for each answer.
//!
//! A token by itself does not say what it adds to a text: it may be half a character, and many decoders look at its
//! neighbours. A byte-level decoder does not: the text is the bytes of the tokens, one after the other. So a token
//! that is whole characters always adds the same text, wherever it comes after a whole character, and
//! [`Detokenizer`](super::Detokenizer) need not decode its window for it. For other decoders the table stays empty.

use std::sync::OnceLock;

use tokenizers::{DecoderWrapper, Tokenizer};

/// Texts by token, filled as they are asked for.
#[derive(Debug)]
pub struct Pieces(Box<[OnceLock<Option<Box<str>>>]>);

impl Pieces {
    /// An empty table for the tokenizer's vocabulary.
    pub fn new(tokenizer: &Tokenizer) -> Self {
        let byte_level = matches!(tokenizer.get_decoder(), Some(DecoderWrapper::ByteLevel(_)));
        let tokens = if byte_level {
            tokenizer.get_vocab_size(true)
        } else {
            0
        };
        Self((0..tokens).map(|_| OnceLock::new()).collect())
    }

    /// What `token` adds after a whole character; none when that is not known without its neighbours, or depends on
    /// whether special tokens are shown.
    pub fn get(&self, tokenizer: &Tokenizer, token: u32) -> Option<&str> {
        let slot = self.0.get(token as usize)?;
        slot.get_or_init(|| whole(tokenizer, token)).as_deref()
    }
}

fn whole(tokenizer: &Tokenizer, token: u32) -> Option<Box<str>> {
    let hidden = tokenizer.decode(&[token], true).ok()?;
    let shown = tokenizer.decode(&[token], false).ok()?;
    let whole = !shown.is_empty() && shown == hidden && !shown.contains('\u{FFFD}');
    whole.then(|| shown.into_boxed_str())
}
