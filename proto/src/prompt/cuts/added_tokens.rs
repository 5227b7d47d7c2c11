//! Cuts at the beginning of added tokens, such as `<|im_start|>`.
//!
//! The tokenizer looks for the added tokens that are not `normalized` in the text as it is, from
//! left to right, the longest at each place, before any other step. What lies between two of them
//! is normalised, searched for the `normalized` ones, split and encoded on its own. A cut where a
//! token begins therefore changes nothing on either side, provided that finding the tokens is not
//! changed by the cut itself:
//!
//! - The search finds the same on both sides, because it goes on after a match as it would begin
//!   anew, and a candidate that the cut removes would have crossed a match of the whole text.
//! - The token must begin where it was found: `lstrip` would take white space from before the cut.
//! - It must not depend on what stands before it: `single_word` does.
//! - What stands before must not depend on it: `rstrip` of an earlier token takes white space up to
//!   it, and `single_word` of an earlier token asks whether a word follows. Both stop at ASCII
//!   punctuation other than `_`, and so does the end of the text.
//!
//! The cut is before the token rather than after it, so that what follows the token never stands at
//! the very beginning of a piece, where Metaspace's scheme `first` would prepend a space. It also
//! leaves the token's own `rstrip` within one piece.

use std::fmt;

use aho_corasick::{AhoCorasick, MatchKind};
use tokenizers::{AddedToken, Tokenizer};

/// The added tokens that a tokenizer looks for in the raw text, and which of them open a piece.
pub(super) struct AddedTokens {
    search: AhoCorasick,
    /// By pattern of the search.
    opens_piece: Vec<bool>,
}

impl fmt::Debug for AddedTokens {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("AddedTokens")
            .field("tokens", &self.opens_piece.len())
            .finish_non_exhaustive()
    }
}

impl AddedTokens {
    /// The added tokens of `tokenizer`, or why none of them is a safe cut.
    pub(super) fn of(tokenizer: &Tokenizer) -> Result<Self, &'static str> {
        let tokens: Vec<AddedToken> = tokenizer
            .get_added_tokens_decoder()
            .into_values()
            .filter(|token| !token.normalized)
            .collect();
        let opens_piece: Vec<bool> = tokens.iter().map(opens_piece).collect();
        if !opens_piece.contains(&true) {
            return Err("no added token is independent of the text around it");
        }
        let search = AhoCorasick::builder()
            .match_kind(MatchKind::LeftmostLongest)
            .build(tokens.iter().map(|token| &token.content))
            .map_err(|_| "the added tokens are too many to search for")?;
        Ok(Self {
            search,
            opens_piece,
        })
    }

    /// Where the tokens begin that open a piece, in order.
    pub(super) fn starts(&self, text: &str) -> impl Iterator<Item = usize> {
        self.search
            .find_iter(text)
            .filter(|found| self.opens_piece.get(found.pattern().as_usize()) == Some(&true))
            .map(|found| found.start())
    }
}

fn opens_piece(token: &AddedToken) -> bool {
    let first = token.content.bytes().next();
    !token.lstrip
        && !token.single_word
        && first.is_some_and(|byte| byte.is_ascii_punctuation() && byte != b'_')
}
