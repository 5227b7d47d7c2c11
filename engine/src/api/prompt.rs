//! Prompts as a request wants them: with or without the tokenizer's special tokens, and cut to length.

use pointsman_proto::openai::TruncationSide;
use pointsman_proto::prompt::{Prompt, PromptEncoder, PromptError};

/// The tokens to keep of a prompt that is too long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Truncation {
    pub(super) keep: usize,
    pub(super) side: TruncationSide,
}

impl Truncation {
    fn cut(self, tokens: &mut Vec<u32>) {
        let excess = tokens.len().saturating_sub(self.keep);
        match self.side {
            TruncationSide::Left => drop(tokens.drain(..excess)),
            TruncationSide::Right => tokens.truncate(self.keep),
        }
    }
}

/// The token ids of a text. Special tokens that the tokenizer puts around it survive a cut, as in transformers.
pub(super) fn encode_text(
    encoder: &PromptEncoder,
    text: &str,
    add_special_tokens: bool,
    truncation: Option<Truncation>,
) -> Result<Vec<u32>, PromptError> {
    let mut tokens = encoder.encode_text(text, add_special_tokens)?;
    let Some(truncation) = truncation.filter(|truncation| truncation.keep < tokens.len()) else {
        return Ok(tokens);
    };
    let frame = encoder.special_frame().filter(|_| add_special_tokens);
    let framed = frame.map_or(0, |frame| frame.before.len() + frame.after.len());
    let Some(frame) = frame.filter(|_| framed <= truncation.keep) else {
        truncation.cut(&mut tokens);
        return Ok(tokens);
    };
    tokens.truncate(tokens.len() - frame.after.len());
    tokens.drain(..frame.before.len());
    let inner = Truncation {
        keep: truncation.keep - framed,
        ..truncation
    };
    inner.cut(&mut tokens);
    Ok([&frame.before[..], &tokens, &frame.after].concat())
}

/// The token ids of a prompt of a completion.
pub(super) fn encode(
    encoder: &PromptEncoder,
    prompt: &Prompt,
    add_special_tokens: bool,
    truncation: Option<Truncation>,
) -> Result<Vec<u32>, PromptError> {
    if let Prompt::Text(text) = prompt {
        return encode_text(encoder, text, add_special_tokens, truncation);
    }
    let mut tokens = encoder.encode(prompt)?;
    if let Some(truncation) = truncation {
        truncation.cut(&mut tokens);
    }
    Ok(tokens)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use serde_json::{Value, json};

    use super::*;

    const LEFT: TruncationSide = TruncationSide::Left;
    const RIGHT: TruncationSide = TruncationSide::Right;

    fn keep(keep: usize, side: TruncationSide) -> Truncation {
        Truncation { keep, side }
    }

    #[test]
    fn a_prompt_is_cut_at_either_end() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("demo-model");
        let encoder = PromptEncoder::load(&folder).unwrap();
        let prompt = Prompt::Tokens(vec![1, 2, 3, 4]);
        for (truncation, expected) in [
            (None, &[1, 2, 3, 4][..]),
            (Some(keep(4, LEFT)), &[1, 2, 3, 4]),
            (Some(keep(3, LEFT)), &[2, 3, 4]),
            (Some(keep(3, RIGHT)), &[1, 2, 3]),
            (Some(keep(9, RIGHT)), &[1, 2, 3, 4]),
        ] {
            assert_eq!(
                encode(&encoder, &prompt, true, truncation).unwrap(),
                expected
            );
        }
    }

    #[test]
    fn special_tokens_around_a_text_survive() {
        let folder = tempfile::tempdir().unwrap();
        let demo = Path::new(env!("CARGO_MANIFEST_DIR")).join("demo-model/tokenizer.json");
        let text = std::fs::read_to_string(demo).unwrap();
        let mut tokenizer: Value = serde_json::from_str(&text).unwrap();
        let special = |id: &str| json!({"SpecialToken": {"id": id, "type_id": 0}});
        tokenizer["post_processor"] = json!({
            "type": "TemplateProcessing",
            "single": [special("<|endoftext|>"), {"Sequence": {"id": "A", "type_id": 0}}, special("<|im_end|>")],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {
                "<|endoftext|>": {"id": "<|endoftext|>", "ids": [0], "tokens": ["<|endoftext|>"]},
                "<|im_end|>": {"id": "<|im_end|>", "ids": [2], "tokens": ["<|im_end|>"]},
            },
        });
        std::fs::write(folder.path().join("tokenizer.json"), tokenizer.to_string()).unwrap();
        let encoder = PromptEncoder::load(folder.path()).unwrap();
        let text = "one two three four";
        let plain = encoder.encode_text(text, false).unwrap();
        let end = plain.len();
        assert!(end > 3);
        let cut = |special, truncation| encode_text(&encoder, text, special, truncation).unwrap();
        assert_eq!(
            cut(true, Some(keep(4, LEFT))),
            [0, plain[end - 2], plain[end - 1], 2]
        );
        assert_eq!(cut(true, Some(keep(4, RIGHT))), [0, plain[0], plain[1], 2]);
        assert_eq!(cut(false, Some(keep(2, LEFT))), plain[end - 2..]);
        assert_eq!(cut(true, Some(keep(1, LEFT))), [2], "no room for both");
        assert_eq!(cut(true, None).len(), end + 2);
    }
}
