//! Fields of a request that name tokens, by id or by text, checked against the vocabulary.
//!
//! A token that does not exist is refused: a bias on it would do nothing, and the client believes it does something.

use std::collections::BTreeMap;

use pointsman_proto::prompt::PromptEncoder;
use serde_json::{Map, Value};

use super::error::ApiError;

/// Words of `bad_words`. Each costs a comparison with the end of the answer at every token.
const BAD_WORDS_MAX: usize = 1024;
/// Tokens of `logprob_token_ids`, each listed at every token of the answer.
const ASKED_MAX: usize = 128;
/// Biases are clamped to this, as in vLLM; OpenAI allows no more.
const BIAS_MAX: f32 = 100.0;

/// The tokens that there are.
#[derive(Clone, Copy, Debug)]
pub(super) struct Vocabulary<'a> {
    pub(super) encoder: &'a PromptEncoder,
    /// The first id that the model does not have.
    pub(super) size: u32,
}

impl Vocabulary<'_> {
    /// `logit_bias`: an object from token ids to numbers. The ids come out sorted, each once.
    pub(super) fn biases(self, biases: &Map<String, Value>) -> Result<Vec<(u32, f32)>, ApiError> {
        let wrong = |problem: String| ApiError::field("logit_bias", problem);
        let mut sorted = BTreeMap::new();
        for (key, value) in biases {
            let token: i64 = key
                .trim()
                .parse()
                .map_err(|_| wrong(format!("has the key {key:?}, which is no token id")))?;
            let token = self.token("logit_bias", token)?;
            let bias = value
                .as_f64()
                .ok_or_else(|| wrong(format!("must give token {key} a number, got {value}")))?;
            sorted.insert(token, (bias as f32).clamp(-BIAS_MAX, BIAS_MAX));
        }
        Ok(sorted.into_iter().collect())
    }

    /// `allowed_token_ids`: sorted, each once. An empty list allows nothing and is refused, as in vLLM.
    pub(super) fn allowed(self, tokens: &[u32]) -> Result<Vec<u32>, ApiError> {
        if tokens.is_empty() {
            return Err(ApiError::field("allowed_token_ids", "must not be empty"));
        }
        let mut allowed = self.known("allowed_token_ids", tokens)?;
        allowed.sort_unstable();
        allowed.dedup();
        Ok(allowed)
    }

    /// `logprob_token_ids`, in their order, each once.
    pub(super) fn asked(self, tokens: &[u32]) -> Result<Vec<u32>, ApiError> {
        let field = "logprob_token_ids";
        if tokens.is_empty() || tokens.len() > ASKED_MAX {
            let problem = format!("must hold 1 to {ASKED_MAX} token ids, got {}", tokens.len());
            return Err(ApiError::field(field, problem));
        }
        let mut asked = Vec::with_capacity(tokens.len());
        for token in self.known(field, tokens)? {
            if !asked.contains(&token) {
                asked.push(token);
            }
        }
        Ok(asked)
    }

    /// `bad_words` as sequences of tokens: each word as it begins a text, and as it stands within one, behind a space.
    /// The latter only if it does not end with the former: a token for the space and then the word is kept back with
    /// the word. vLLM also leaves it out where the two differ in length, and lets the word through behind a space.
    pub(super) fn bad_words(self, words: &[String]) -> Result<Vec<Vec<u32>>, ApiError> {
        if words.len() > BAD_WORDS_MAX {
            let problem = format!(
                "must have at most {BAD_WORDS_MAX} entries, got {}",
                words.len()
            );
            return Err(ApiError::field("bad_words", problem));
        }
        let mut sequences = Vec::with_capacity(2 * words.len());
        for word in words {
            let word = word.trim_start();
            let begins = self.encoder.encode_text(word, false)?;
            if begins.is_empty() {
                let problem = "must not have an entry without a token, such as an empty string";
                return Err(ApiError::field("bad_words", problem));
            }
            let within = self.encoder.encode_text(&format!(" {word}"), false)?;
            if !within.ends_with(&begins) {
                sequences.push(within);
            }
            sequences.push(begins);
        }
        Ok(sequences)
    }

    fn known(self, field: &str, tokens: &[u32]) -> Result<Vec<u32>, ApiError> {
        let tokens = tokens
            .iter()
            .map(|token| self.token(field, i64::from(*token)));
        tokens.collect()
    }

    fn token(self, field: &str, token: i64) -> Result<u32, ApiError> {
        let known = u32::try_from(token).ok().filter(|token| *token < self.size);
        known.ok_or_else(|| {
            let size = self.size;
            let problem = format!(
                "has the token id {token}, and the model's vocabulary has the ids from 0 to {}",
                size.saturating_sub(1)
            );
            ApiError::field(field, problem)
        })
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use serde_json::json;

    use super::*;

    fn with_vocabulary<T>(look: impl FnOnce(Vocabulary<'_>) -> T) -> T {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("demo-model");
        let encoder = PromptEncoder::load(&folder).expect("the demo model is in the repository");
        let size = encoder.vocab_size() as u32;
        look(Vocabulary {
            encoder: &encoder,
            size,
        })
    }

    fn message<T: std::fmt::Debug>(result: Result<T, ApiError>) -> (Option<String>, String) {
        let error = result.unwrap_err().body().error.clone();
        (error.param, error.message)
    }

    #[test]
    fn biases_are_clamped_and_sorted() {
        with_vocabulary(|vocabulary| {
            let biases = json!({"9": 250, "3": -1.5, "7": -1e9});
            let got = vocabulary.biases(biases.as_object().unwrap()).unwrap();
            assert_eq!(got, [(3, -1.5), (7, -100.0), (9, 100.0)]);
            for (biases, said) in [
                (json!({"x": 1}), "\"x\""),
                (json!({"-1": 1}), "-1"),
                (json!({"99999999999": 1}), "99999999999"),
                (json!({"5": "much"}), "must give token 5 a number"),
                (json!({"5": null}), "null"),
            ] {
                let (param, message) = message(vocabulary.biases(biases.as_object().unwrap()));
                assert_eq!(param.as_deref(), Some("logit_bias"));
                assert!(message.contains(said), "{message}");
            }
        });
    }

    #[test]
    fn tokens_that_do_not_exist_are_refused() {
        with_vocabulary(|vocabulary| {
            let size = vocabulary.size;
            assert_eq!(vocabulary.allowed(&[5, 2, 5]).unwrap(), [2, 5]);
            assert_eq!(vocabulary.asked(&[5, 2, 5]).unwrap(), [5, 2]);
            assert!(vocabulary.allowed(&[size - 1]).is_ok());
            let (param, said) = message(vocabulary.allowed(&[1, size]));
            assert_eq!(param.as_deref(), Some("allowed_token_ids"));
            assert!(said.contains(&size.to_string()), "{said}");
            assert!(message(vocabulary.allowed(&[])).1.contains("empty"));
            let many: Vec<u32> = (0..=ASKED_MAX as u32).collect();
            for ids in [&[][..], &[size], &many] {
                assert_eq!(
                    message(vocabulary.asked(ids)).0.as_deref(),
                    Some("logprob_token_ids")
                );
            }
        });
    }

    #[test]
    fn a_bad_word_is_kept_from_the_beginning_and_from_within() {
        with_vocabulary(|vocabulary| {
            let text = |tokens: &Vec<u32>| {
                vocabulary
                    .encoder
                    .tokenizer()
                    .decode(tokens, false)
                    .unwrap()
            };
            let got = vocabulary.bad_words(&["the".to_owned()]).unwrap();
            let mut texts: Vec<String> = got.iter().map(text).collect();
            texts.sort();
            assert_eq!(texts, [" the", "the"]);
            assert_eq!(
                vocabulary.bad_words(&["  the".to_owned()]).unwrap(),
                got,
                "space before the word is not part of it"
            );
            for word in ["gateway", "zzz", "Ω"] {
                let got = vocabulary.bad_words(&[word.to_owned()]).unwrap();
                assert!(got.iter().any(|tokens| text(tokens) == word), "{word}");
                let within = format!(" {word}");
                let within = vocabulary.encoder.encode_text(&within, false).unwrap();
                assert!(got.iter().any(|tokens| within.ends_with(tokens)), "{word}");
            }
            for words in [
                vec![String::new()],
                vec!["  ".to_owned()],
                vec!["x".to_owned(); 1025],
            ] {
                assert_eq!(
                    message(vocabulary.bad_words(&words)).0.as_deref(),
                    Some("bad_words")
                );
            }
        });
    }
}
