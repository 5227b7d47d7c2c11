//! Where a text may be cut so that the token ids of its pieces, put one after another, are exactly
//! the ids of the whole.
//!
//! A tokenizer works in steps, and each step bounds what may influence what. It first takes the
//! added tokens out of the text; what is left between them is normalised, split and encoded piece
//! by piece, and no step looks from one piece into another. So the beginning of an added token is a
//! safe cut whatever the normaliser, the pre-tokenizer and the model do ([`AddedTokens`] says
//! which, and why). Chat templates put such tokens around every turn. Inside plain text a cut is
//! safe only where the pre-tokenizer's pattern can be shown to split there in any surroundings,
//! which [`LineStarts`] does for the patterns of the byte-level BPE families.
//!
//! Where neither can be shown, a text is one piece, and [`Cuts`] says why in its `Display`.
//!
//! Cuts are chosen from left to right and depend only on the text before them and a token's length
//! after, so a longer text that begins alike is cut alike. The ids of a piece depend on the piece
//! alone.

mod added_tokens;
mod line_starts;

use std::fmt;

use tokenizers::{ModelWrapper, Tokenizer};

use self::added_tokens::AddedTokens;
use self::line_starts::LineStarts;

/// An added token opens a new piece only this many bytes after the last cut. It keeps the pieces of
/// a text of nothing but added tokens from outnumbering its bytes, and the closing token of one
/// message in one piece with the opening of the next.
const TURN_BYTES_MIN: usize = 64;

/// Plain text is cut at the first safe place after this many bytes: what a text that grows by a few
/// words has encoded again, at most, beside its line.
const LINES_BYTES_MIN: usize = 1024;

/// Where the texts of one tokenizer may be cut.
#[derive(Debug)]
pub struct Cuts {
    added_tokens: Result<AddedTokens, &'static str>,
    line_starts: Result<LineStarts, &'static str>,
    turn_bytes_min: usize,
    lines_bytes_min: usize,
}

impl Cuts {
    /// Finds out where `tokenizer` allows cuts.
    pub(super) fn of(tokenizer: &Tokenizer) -> Self {
        let (added_tokens, line_starts) = if encodes_at_random(tokenizer) {
            let reason = "the tokenizer encodes at random";
            (Err(reason), Err(reason))
        } else {
            (AddedTokens::of(tokenizer), LineStarts::of(tokenizer))
        };
        Self {
            added_tokens,
            line_starts,
            turn_bytes_min: TURN_BYTES_MIN,
            lines_bytes_min: LINES_BYTES_MIN,
        }
    }

    /// The pieces of a text, in order and without a gap. There is always at least one; none is empty
    /// unless the text is.
    pub fn pieces<'t>(&self, text: &'t str) -> Vec<&'t str> {
        let mut pieces = Pieces {
            text,
            begin: 0,
            list: Vec::new(),
        };
        if let Ok(added_tokens) = &self.added_tokens {
            for token in added_tokens.starts(text) {
                self.cut_lines(&mut pieces, token);
                if token - pieces.begin >= self.turn_bytes_min {
                    pieces.cut(token);
                }
            }
        }
        self.cut_lines(&mut pieces, text.len());
        pieces.list.push(&text[pieces.begin..]);
        pieces.list
    }

    /// Cuts the plain text between the last cut and `until`.
    fn cut_lines(&self, pieces: &mut Pieces<'_>, until: usize) {
        let Ok(line_starts) = &self.line_starts else {
            return;
        };
        let bytes = pieces.text.as_bytes();
        while let Some(cut) = line_starts.first(bytes, pieces.begin + self.lines_bytes_min, until) {
            pieces.cut(cut);
        }
    }
}

/// Where cuts are made, and if somewhere not, why: one line for a log.
impl fmt::Display for Cuts {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.added_tokens, &self.line_starts) {
            (Ok(_), Ok(_)) => formatter.write_str("at added tokens and at lines"),
            (Ok(_), Err(reason)) => write!(formatter, "at added tokens; not at lines: {reason}"),
            (Err(reason), Ok(_)) => write!(formatter, "at lines; not at added tokens: {reason}"),
            (Err(tokens), Err(lines)) if tokens == lines => write!(formatter, "nowhere: {tokens}"),
            (Err(tokens), Err(lines)) => write!(formatter, "nowhere: {tokens}; {lines}"),
        }
    }
}

struct Pieces<'t> {
    text: &'t str,
    begin: usize,
    list: Vec<&'t str>,
}

impl Pieces<'_> {
    fn cut(&mut self, place: usize) {
        self.list.push(&self.text[self.begin..place]);
        self.begin = place;
    }
}

/// Dropout and sampling are for training; a tokenizer file may ask for them all the same.
fn encodes_at_random(tokenizer: &Tokenizer) -> bool {
    match tokenizer.get_model() {
        ModelWrapper::BPE(model) => model.dropout.is_some_and(|dropout| dropout > 0.0),
        ModelWrapper::Unigram(model) => model.alpha.is_some_and(|alpha| alpha != 0.0),
        ModelWrapper::WordPiece(_) | ModelWrapper::WordLevel(_) => false,
    }
}

#[cfg(test)]
mod tests;
