//! Cuts inside plain text: between a line feed and an ASCII letter.
//!
//! Shown for byte-level tokenizers whose pre-tokenizer splits by one of the patterns below. Let the
//! cut lie between `\n` and a letter.
//!
//! - *The whole text is split there.* In each pattern an alternative that can match a `\n` matches
//!   no letter after it: it is white space only, or punctuation and then line feeds (and slashes).
//!   So the match that holds the `\n` ends at the cut. Every character is matched by some
//!   alternative, so the next match begins there.
//! - *The right side is split alike.* No pattern looks back, so matching from the cut on sees what
//!   it sees in the right side alone.
//! - *The left side is split alike.* The only look ahead is one character, in `\s+(?!\S)`, so
//!   matches that end before the `\n` cannot tell the difference. The match that holds it ends with
//!   the left side. In the newer patterns it is punctuation with its line feeds, or
//!   `\s*[\r\n]+`, which stands before the look-ahead and takes the run of white space whole, as it
//!   ends in a line feed: the same with and without the letter. GPT-2's pattern has nothing but the
//!   look-ahead: of a longer run of white space it leaves the last character over when a letter
//!   follows, and takes all of it at the end of a text. There the `\n` must be the whole run, which
//!   is one match either way: an ASCII character that is no white space has to precede it.
//!
//! Digits, split off before GPT-2's pattern is applied, do not change this: the cut lies between two
//! characters of the same kind to them, and a split that begins with the `\n` is no longer run.
//!
//! Unicode normalisation (NFC and its kin) does not act across the cut, because an ASCII character
//! never combines with what stands before it. It could change the letter by a combining mark after
//! it, so the byte after the letter has to be ASCII, too.
//!
//! Added tokens must not see the cut either: none may contain a line feed (or it could lie across),
//! be `lstrip` (it could take the line feed) or `single_word`.

use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::{NormalizerWrapper, PreTokenizerWrapper, SplitDelimiterBehavior, Tokenizer};

/// Patterns in which `\s*[\r\n]+` takes runs of white space that end in a line feed: those of
/// Llama 3 (and cl100k), of Qwen 2 and later, and of o200k, as their `tokenizer.json` spells them.
pub(super) const NEWER_PATTERNS: [&str; 3] = [
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+",
];

/// Which line starts are safe cuts.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum LineStarts {
    /// After any line feed.
    Any,
    /// After a line feed that is the only white space: one that ends a line of ASCII text.
    AfterText,
}

impl LineStarts {
    /// Which line starts are safe for `tokenizer`, or why none is.
    pub(super) fn of(tokenizer: &Tokenizer) -> Result<Self, &'static str> {
        match tokenizer.get_normalizer() {
            None
            | Some(
                NormalizerWrapper::NFC(_)
                | NormalizerWrapper::NFD(_)
                | NormalizerWrapper::NFKC(_)
                | NormalizerWrapper::NFKD(_),
            ) => {}
            Some(_) => return Err("the normalizer may act across a line start"),
        }
        let acts_across = tokenizer
            .get_added_tokens_decoder()
            .into_values()
            .any(|token| token.lstrip || token.single_word || token.content.contains('\n'));
        if acts_across {
            return Err("an added token may act across a line start");
        }
        tokenizer
            .get_pre_tokenizer()
            .and_then(Self::of_pre_tokenizer)
            .ok_or("the pre-tokenizer is none that is known to split at line starts")
    }

    fn of_pre_tokenizer(pre_tokenizer: &PreTokenizerWrapper) -> Option<Self> {
        match pre_tokenizer {
            PreTokenizerWrapper::ByteLevel(_) => is_gpt2(pre_tokenizer).then_some(Self::AfterText),
            PreTokenizerWrapper::Sequence(sequence) => match sequence.as_ref() {
                [only] => Self::of_pre_tokenizer(only),
                [PreTokenizerWrapper::Digits(_), last] if is_gpt2(last) => Some(Self::AfterText),
                [
                    PreTokenizerWrapper::Split(split),
                    PreTokenizerWrapper::ByteLevel(bytes),
                ] => (is_newer(split) && !bytes.add_prefix_space && !bytes.use_regex)
                    .then_some(Self::Any),
                _ => None,
            },
            _ => None,
        }
    }

    /// The first safe cut at or after `from` and before `until`.
    pub(super) fn first(self, text: &[u8], from: usize, until: usize) -> Option<usize> {
        let line_feeds = text.get(..until)?.get(from..)?.iter().enumerate();
        line_feeds
            .filter(|(_, byte)| **byte == b'\n')
            .map(|(offset, _)| from + offset + 1)
            .find(|cut| *cut < until && self.is_safe(text, *cut))
    }

    /// Whether a line start is a safe cut.
    fn is_safe(self, text: &[u8], cut: usize) -> bool {
        let follows = text.get(cut).is_some_and(u8::is_ascii_alphabetic)
            && text.get(cut + 1).is_some_and(u8::is_ascii);
        let before = cut.checked_sub(2).and_then(|place| text.get(place));
        follows && (self == Self::Any || before.is_some_and(u8::is_ascii_graphic))
    }
}

/// Whether this splits by GPT-2's pattern and nothing else.
fn is_gpt2(pre_tokenizer: &PreTokenizerWrapper) -> bool {
    matches!(pre_tokenizer, PreTokenizerWrapper::ByteLevel(bytes) if bytes.use_regex && !bytes.add_prefix_space)
}

/// Whether this splits by one of the newer patterns. Converters write the same split in two ways:
/// the matches stand alone, or what is between matches is removed, of which there is nothing.
fn is_newer(split: &Split) -> bool {
    let SplitPattern::Regex(pattern) = &split.pattern else {
        return false;
    };
    let whole = matches!(
        (split.behavior, split.invert),
        (SplitDelimiterBehavior::Isolated, false) | (SplitDelimiterBehavior::Removed, true)
    );
    whole && NEWER_PATTERNS.contains(&pattern.as_str())
}
