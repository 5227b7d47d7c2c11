//! Token ids, one at a time, to pieces of text that are safe to send.
//!
//! A token need not end on a character: byte-level vocabularies split a character over up to four tokens, and a
//! decoder shows the unfinished part as U+FFFD. A piece is therefore held back while the text ends in that
//! character, and sent once a later token completes it. Tokens also depend on their left neighbour (many decoders
//! drop the space before the first token they see), so a token is always decoded together with some ids before
//! it, starting with the last ids of the prompt.
//!
//! ```text
//! window = [ context: ids whose text is sent | pending: ids whose text is not, or not wholly, sent ]
//! piece  = decode(window)[sent..], less the unfinished character at its end
//! ```
//!
//! A character that never completes is two or three bytes of garbage; at most [`HELD_CHARS_MAX`] replacement
//! characters are held, so garbage flows on as it comes and the window stays small.
//!
//! For decoders whose text only ever grows (byte-level BPE: all of GPT, Llama 3, Qwen) the pieces joined are
//! exactly the decoded whole. A decoder that rewrites what it said before (SentencePiece byte fallback, when a
//! run of bytes turns out not to be UTF-8) cannot be streamed exactly by anybody: what was sent stands, and the
//! stream goes on from the new end.

use std::sync::Arc;

use pointsman_proto::prompt::PromptEncoder;
use tokenizers::Tokenizer;

use super::Pieces;

/// Replacement characters held back at the end of the text: the bytes of an unfinished character are at most
/// three, and decoders write between one replacement character for all of them and one for each.
const HELD_CHARS_MAX: usize = 3;

/// Ids that stay in the window when it is cut, and ids of the prompt that it starts with. They hold more bytes
/// than the longest unfinished text and one character, so that UTF-8 is in step again before the unsent text
/// begins, wherever the cut falls.
const CONTEXT_IDS: usize = 8;

/// Ids in the window at which it is cut. Each token costs one decode of the window, each cut one more, so a
/// cut at each token would cost double and a far longer window the same.
const WINDOW_IDS: usize = 20;

/// Ids in the window at which held text is sent unfinished, because ids without text (special tokens) pushed
/// it out of reach of a cut.
const WINDOW_IDS_MAX: usize = 64;

const REPLACEMENT: char = '\u{FFFD}';

/// The text of one token by itself, as logprobs name it. Special tokens are shown; an id outside of the
/// vocabulary is the empty string.
pub fn token_text(tokenizer: &Tokenizer, token: u32) -> String {
    tokenizer.decode(&[token], false).unwrap_or_default()
}

/// The incremental detokeniser of one answer.
#[derive(Clone, Debug)]
pub struct Detokenizer {
    encoder: Arc<PromptEncoder>,
    skip_special_tokens: bool,
    /// Context, then the ids whose text is not, or not wholly, sent.
    window: Vec<u32>,
    /// Bytes of `decode(window)` that are sent, or belong to the prompt.
    sent: usize,
    /// Texts of single tokens, where the tokenizer's decoder has such.
    pieces: Option<Arc<Pieces>>,
    /// All text is sent, and it ends with a whole character.
    settled: bool,
}

impl Detokenizer {
    /// A detokeniser for what follows `prompt`. Special tokens are left out of the text if
    /// `skip_special_tokens`.
    pub fn new(encoder: Arc<PromptEncoder>, prompt: &[u32], skip_special_tokens: bool) -> Self {
        let window = prompt[prompt.len().saturating_sub(CONTEXT_IDS)..].to_vec();
        let mut this = Self {
            encoder,
            skip_special_tokens,
            window,
            sent: 0,
            pieces: None,
            settled: false,
        };
        let text = this.decode(&this.window);
        this.sent = settled_len(&text);
        this.settled = this.sent == text.len();
        this
    }

    /// The same, without decoding what stands in `pieces`.
    #[must_use]
    pub fn with_pieces(self, pieces: Arc<Pieces>) -> Self {
        Self {
            pieces: Some(pieces),
            ..self
        }
    }

    /// Takes the next token and returns the text that became sendable by it, often empty.
    pub fn push(&mut self, token: u32) -> String {
        if let Some(piece) = self.known_piece(token) {
            // The next token, if it is none of these, may be decoded as if the text began with it.
            self.window.clear();
            self.sent = 0;
            return piece;
        }
        self.window.push(token);
        let text = self.decode(&self.window);
        let settled = settled_len(&text);
        let mut piece = text.get(self.sent..settled).unwrap_or_default().to_owned();
        self.sent = settled.max(self.sent.min(text.len()));
        let held = text.get(self.sent..).unwrap_or_default();
        self.settled = held.is_empty();
        if self.window.len() >= WINDOW_IDS && !self.cut(held) && self.window.len() >= WINDOW_IDS_MAX
        {
            piece.push_str(held);
            self.cut("");
        }
        piece
    }

    fn known_piece(&self, token: u32) -> Option<String> {
        let pieces = self.pieces.as_ref().filter(|_| self.settled)?;
        let piece = pieces.get(self.encoder.tokenizer(), token)?;
        Some(piece.to_owned())
    }

    /// The answer is over: returns what is held back, unfinished characters as U+FFFD.
    pub fn finish(&mut self) -> String {
        let text = self.decode(&self.window);
        let piece = text.get(self.sent..).unwrap_or_default().to_owned();
        self.sent = text.len();
        piece
    }

    /// Drops all but the last [`CONTEXT_IDS`] ids, if the text still `held` is in what remains.
    fn cut(&mut self, held: &str) -> bool {
        let kept = self.window.len().saturating_sub(CONTEXT_IDS);
        let text = self.decode(&self.window[kept..]);
        let Some(sent) = text.strip_suffix(held).map(str::len) else {
            return false;
        };
        self.window.drain(..kept);
        self.sent = sent;
        true
    }

    fn decode(&self, ids: &[u32]) -> String {
        // Decoding fails only in a decoder that is broken for every input; the answer then has no text, and its
        // ids still reach a client that asks for them.
        self.encoder
            .tokenizer()
            .decode(ids, self.skip_special_tokens)
            .unwrap_or_default()
    }
}

/// Length of `text` without the replacement characters at its end that a later token may still turn into a
/// character.
fn settled_len(text: &str) -> usize {
    let held = text
        .chars()
        .rev()
        .take(HELD_CHARS_MAX)
        .take_while(|c| *c == REPLACEMENT)
        .count();
    text.len() - held * REPLACEMENT.len_utf8()
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use proptest::prelude::*;

    use super::*;

    fn encoder() -> Arc<PromptEncoder> {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("demo-model");
        Arc::new(PromptEncoder::load(&folder).expect("the demo model is part of the repository"))
    }

    fn pieces(
        encoder: &Arc<PromptEncoder>,
        prompt: &[u32],
        ids: &[u32],
        skip: bool,
    ) -> Vec<String> {
        let detokenizer = Detokenizer::new(Arc::clone(encoder), prompt, skip);
        let table = Arc::new(Pieces::new(encoder.tokenizer()));
        let plain = pieces_of(detokenizer.clone(), ids);
        let fast = pieces_of(detokenizer.with_pieces(table), ids);
        assert_eq!(plain, fast, "the table of pieces changes nothing");
        plain
    }

    fn pieces_of(mut detokenizer: Detokenizer, ids: &[u32]) -> Vec<String> {
        let mut pieces: Vec<String> = ids.iter().map(|id| detokenizer.push(*id)).collect();
        pieces.push(detokenizer.finish());
        pieces
    }

    #[test]
    fn most_words_of_the_demo_vocabulary_need_no_decoding() {
        let encoder = encoder();
        let table = Pieces::new(encoder.tokenizer());
        let known = (0..1024).filter(|id| table.get(encoder.tokenizer(), *id).is_some());
        assert!(known.count() > 700);
        let end = encoder.tokenizer().token_to_id("<|im_end|>").unwrap();
        assert_eq!(table.get(encoder.tokenizer(), end), None);
        assert_eq!(table.get(encoder.tokenizer(), 1 << 20), None);
    }

    #[test]
    fn a_character_is_never_split() {
        let encoder = encoder();
        let ids = encoder.encode_text("a 你好 🚂 z", false).unwrap();
        let pieces = pieces(&encoder, &[], &ids, true);
        assert_eq!(pieces.concat(), "a 你好 🚂 z");
        assert!(
            pieces.iter().all(|piece| !piece.contains(REPLACEMENT)),
            "{pieces:?}"
        );
        assert!(
            pieces.iter().any(String::is_empty),
            "the demo vocabulary splits these characters"
        );
    }

    #[test]
    fn an_unfinished_character_comes_out_at_the_end() {
        let encoder = encoder();
        let ids = encoder.encode_text("🚂", false).unwrap();
        assert!(ids.len() > 1, "the demo vocabulary splits this character");
        let pieces = pieces(&encoder, &[], &ids[..ids.len() - 1], true);
        assert_eq!(pieces.last().map(String::as_str), Some("\u{FFFD}"));
        assert_eq!(pieces.concat(), "\u{FFFD}");
    }

    #[test]
    fn a_character_begun_in_the_prompt_is_completed() {
        let encoder = encoder();
        let ids = encoder.encode_text("🚂!", false).unwrap();
        let (prompt, answer) = ids.split_at(1);
        assert_eq!(pieces(&encoder, prompt, answer, true).concat(), "🚂!");
    }

    #[test]
    fn special_tokens_are_shown_on_request_only() {
        let encoder = encoder();
        let end = encoder.tokenizer().token_to_id("<|im_end|>").unwrap();
        let mut ids = encoder.encode_text("yes", false).unwrap();
        ids.push(end);
        assert_eq!(pieces(&encoder, &[], &ids, true).concat(), "yes");
        assert_eq!(pieces(&encoder, &[], &ids, false).concat(), "yes<|im_end|>");
    }

    #[test]
    fn special_tokens_without_end_do_not_grow_the_window() {
        let encoder = encoder();
        let end = encoder.tokenizer().token_to_id("<|im_end|>").unwrap();
        let mut detokenizer = Detokenizer::new(Arc::clone(&encoder), &[], true);
        let first = encoder.encode_text("🚂", false).unwrap()[0];
        let mut text = detokenizer.push(first);
        for _ in 0..1000 {
            text.push_str(&detokenizer.push(end));
            assert!(detokenizer.window.len() <= WINDOW_IDS_MAX);
        }
        text.push_str(&detokenizer.finish());
        assert_eq!(text, "\u{FFFD}");
    }

    proptest! {
        #[test]
        fn joined_pieces_are_the_decoded_whole(
            ids in prop::collection::vec(0_u32..1024, 0..200),
            prompt_len in 0_usize..20,
            skip in any::<bool>(),
        ) {
            let encoder = encoder();
            let decode = |ids: &[u32]| encoder.tokenizer().decode(ids, skip).unwrap();
            let (prompt, answer) = ids.split_at(prompt_len.min(ids.len()));
            // Only a prompt that ends on a character can be cut off the whole.
            let prompt = if decode(prompt).ends_with(REPLACEMENT) { &[] } else { prompt };
            let whole = decode(&[prompt, answer].concat());
            let joined = pieces(&encoder, prompt, answer, skip).concat();
            prop_assert_eq!(decode(prompt) + &joined, whole);
        }

        #[test]
        fn bytes_that_are_no_text_come_through(ids in prop::collection::vec(100_u32..256, 0..300)) {
            // The single-byte tokens of the demo vocabulary: mostly continuation and lead bytes in any order.
            let encoder = encoder();
            let whole = encoder.tokenizer().decode(&ids, true).unwrap();
            prop_assert_eq!(pieces(&encoder, &[], &ids, true).concat(), whole);
        }

        #[test]
        fn text_survives_the_round_trip(text in "\\PC{0,80}") {
            let encoder = encoder();
            let ids = encoder.encode_text(&text, false).unwrap();
            let pieces = pieces(&encoder, &[], &ids, true);
            prop_assert_eq!(pieces.concat(), text);
        }
    }
}
