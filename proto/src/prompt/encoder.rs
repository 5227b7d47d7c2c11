//! A model folder, loaded: the tokenizer, and the chat template if the model has one.

use std::io::ErrorKind;
use std::path::Path;

use serde_json::Value;
use tokenizers::{Encoding, Tokenizer};

use super::cuts::Cuts;
use super::template::{ChatTemplate, TemplateSource};
use super::{ChatPrompt, Prompt, PromptError, Rendering, continuation};

/// The special tokens that transformers hands to a template by name.
const SPECIAL_TOKENS: [&str; 7] = [
    "bos_token",
    "eos_token",
    "unk_token",
    "sep_token",
    "pad_token",
    "cls_token",
    "mask_token",
];

/// Turns prompts into token ids for one model. Made once and shared between threads.
#[derive(Debug)]
pub struct PromptEncoder {
    tokenizer: Tokenizer,
    template: Option<ChatTemplate>,
    special_tokens: Vec<(&'static str, String)>,
    vocab_size: usize,
    cuts: Cuts,
    frame: Option<SpecialFrame>,
}

/// The ids that a tokenizer puts around a text that it encodes with special tokens, such as a BOS.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SpecialFrame {
    /// Before the ids of the text.
    pub before: Vec<u32>,
    /// After them.
    pub after: Vec<u32>,
}

impl PromptEncoder {
    /// Reads `tokenizer.json` and, where they exist, `chat_template.jinja` and
    /// `tokenizer_config.json`. A folder without a chat template loads; chats over it are refused.
    ///
    /// # Errors
    ///
    /// [`PromptError::File`] or [`PromptError::Malformed`], each with the file's path.
    pub fn load(model_dir: &Path) -> Result<Self, PromptError> {
        let path = model_dir.join("tokenizer.json");
        let bytes = std::fs::read(&path).map_err(|source| PromptError::File {
            path: path.clone(),
            source,
        })?;
        let mut tokenizer =
            Tokenizer::from_bytes(bytes).map_err(|error| PromptError::Malformed {
                path: path.clone(),
                reason: error.to_string(),
            })?;
        // What a tokenizer file says about batching is meant for training; a prompt is encoded
        // whole.
        tokenizer.with_padding(None);
        tokenizer
            .with_truncation(None)
            .map_err(|error| PromptError::Malformed {
                path,
                reason: error.to_string(),
            })?;
        let vocab_size = tokenizer
            .get_vocab(true)
            .into_values()
            .max()
            .map_or(0, |last| last as usize + 1);
        let (template, special_tokens) = load_template(model_dir)?;
        Ok(Self {
            cuts: Cuts::of(&tokenizer),
            frame: special_frame(&tokenizer),
            tokenizer,
            template,
            special_tokens,
            vocab_size,
        })
    }

    /// The text that the model's chat template makes of `chat`.
    ///
    /// # Errors
    ///
    /// [`PromptError::NoChatTemplate`], [`PromptError::Messages`], [`PromptError::Refused`] or
    /// [`PromptError::Render`].
    pub fn render(&self, chat: &ChatPrompt) -> Result<String, PromptError> {
        self.template
            .as_ref()
            .ok_or(PromptError::NoChatTemplate)?
            .render(chat)
    }

    /// As [`Self::render`], by another template or up to the last message's content.
    ///
    /// # Errors
    ///
    /// As there, [`PromptError::Template`] for a template that does not compile, and
    /// [`PromptError::NotContinuable`].
    pub fn render_as(
        &self,
        chat: &ChatPrompt,
        rendering: Rendering<'_>,
    ) -> Result<String, PromptError> {
        let text = match rendering.template {
            None => self.render(chat)?,
            Some(source) => {
                let tokens = self.special_tokens.clone();
                ChatTemplate::new(TemplateSource::single(source.to_owned()), tokens)
                    .map_err(|reason| PromptError::Template { reason })?
                    .render(chat)?
            }
        };
        if rendering.continue_final_message {
            return continuation::open(text, &chat.messages);
        }
        Ok(text)
    }

    /// The token ids of `text`. Special tokens that stand in the text by name become their ids
    /// either way; `add_special_tokens` says whether the tokenizer puts its own around it, such as
    /// a BOS.
    pub fn encode_text(
        &self,
        text: &str,
        add_special_tokens: bool,
    ) -> Result<Vec<u32>, PromptError> {
        self.tokenizer
            .encode_fast(text, add_special_tokens)
            .map(|encoding| encoding.get_ids().to_vec())
            .map_err(|error| PromptError::Tokenize {
                reason: error.to_string(),
            })
    }

    /// The token ids of `prompt`. A chat is rendered and encoded without further special tokens,
    /// because its template writes them; text gets them; ids are checked against the vocabulary and
    /// taken as they are.
    pub fn encode(&self, prompt: &Prompt) -> Result<Vec<u32>, PromptError> {
        match prompt {
            Prompt::Chat(chat) => self.encode_text(&self.render(chat)?, false),
            Prompt::Text(text) => self.encode_text(text, true),
            Prompt::Tokens(tokens) => {
                let unknown = tokens
                    .iter()
                    .position(|token| *token as usize >= self.vocab_size);
                match unknown {
                    None => Ok(tokens.clone()),
                    Some(position) => Err(PromptError::UnknownToken {
                        position,
                        token: tokens[position],
                        vocab_size: self.vocab_size,
                    }),
                }
            }
        }
    }

    /// Where texts may be cut: the ids of the pieces, each encoded without special tokens and put one
    /// after another, are the ids of the text.
    pub fn cuts(&self) -> &Cuts {
        &self.cuts
    }

    /// What special tokens add to a text's ids; `None` where they do more than to stand around it,
    /// so that a text with them has to be encoded whole.
    pub fn special_frame(&self) -> Option<&SpecialFrame> {
        self.frame.as_ref()
    }

    /// The tokenizer itself, for turning ids back into text.
    pub fn tokenizer(&self) -> &Tokenizer {
        &self.tokenizer
    }

    /// The first token id that the tokenizer does not know. A model's own `vocab_size` may be
    /// larger, by padding.
    pub fn vocab_size(&self) -> usize {
        self.vocab_size
    }
}

/// What the post-processor puts around a text. It sees ids only after the text is encoded, and the
/// kinds that exist place them without looking at them, so one id that no vocabulary has shows where
/// those of any text end up.
fn special_frame(tokenizer: &Tokenizer) -> Option<SpecialFrame> {
    const TEXT: u32 = u32::MAX;
    let processed = |add_special_tokens: bool| {
        let text = Encoding::new(
            vec![TEXT],
            vec![0],
            vec![String::new()],
            vec![None],
            vec![(0, 0)],
            vec![0],
            vec![1],
            Vec::new(),
            [].into_iter().collect(),
        );
        let encoding = tokenizer.post_process(text, None, add_special_tokens);
        encoding.ok().map(|encoding| encoding.get_ids().to_vec())
    };
    if processed(false)? != [TEXT] {
        return None;
    }
    let ids = processed(true)?;
    let (before, rest) = ids.split_at(ids.iter().position(|id| *id == TEXT)?);
    let after = rest.get(1..)?;
    (!after.contains(&TEXT)).then(|| SpecialFrame {
        before: before.to_vec(),
        after: after.to_vec(),
    })
}

/// The template, where the model has one, and the special tokens that templates may name.
type LoadedTemplate = (Option<ChatTemplate>, Vec<(&'static str, String)>);

/// The template file wins over the template in the configuration; the special tokens come from the
/// configuration.
fn load_template(model_dir: &Path) -> Result<LoadedTemplate, PromptError> {
    let config_path = model_dir.join("tokenizer_config.json");
    let malformed = |reason: String| PromptError::Malformed {
        path: config_path.clone(),
        reason,
    };
    let config = match read_if_there(&config_path)? {
        Some(text) => serde_json::from_str(&text).map_err(|error| malformed(error.to_string()))?,
        None => Value::Null,
    };
    let special_tokens = special_tokens(&config).map_err(malformed)?;
    let template_path = model_dir.join("chat_template.jinja");
    let (path, source) = match read_if_there(&template_path)? {
        Some(text) => (template_path, TemplateSource::single(text)),
        None => match config_template(&config).map_err(malformed)? {
            Some(source) => (config_path.clone(), source),
            None => return Ok((None, special_tokens)),
        },
    };
    let template = ChatTemplate::new(source, special_tokens.clone())
        .map_err(|reason| PromptError::Malformed { path, reason })?;
    Ok((Some(template), special_tokens))
}

fn read_if_there(path: &Path) -> Result<Option<String>, PromptError> {
    match std::fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(source) => Err(PromptError::File {
            path: path.to_owned(),
            source,
        }),
    }
}

/// The configuration's `chat_template`: one template, or a list of named ones.
fn config_template(config: &Value) -> Result<Option<TemplateSource>, String> {
    let entries = match config.get("chat_template") {
        None | Some(Value::Null) => return Ok(None),
        Some(Value::String(text)) => return Ok(Some(TemplateSource::single(text.clone()))),
        Some(Value::Array(entries)) => entries,
        Some(_) => return Err("chat_template must be a string or an array".to_owned()),
    };
    let mut default = None;
    let mut tool_use = None;
    for (index, entry) in entries.iter().enumerate() {
        let field = |name: &str| {
            entry
                .get(name)
                .and_then(Value::as_str)
                .ok_or_else(|| format!("chat_template[{index}].{name} must be a string"))
        };
        let template = field("template")?.to_owned();
        match field("name")? {
            "default" => default = Some(template),
            "tool_use" => tool_use = Some(template),
            // Templates of other names are for callers who ask for them by name.
            _ => {}
        }
    }
    let default = default.ok_or("chat_template has no entry named \"default\"")?;
    Ok(Some(TemplateSource { default, tool_use }))
}

/// Each special token that the configuration names: a string, or an object with the string as its
/// `content`.
fn special_tokens(config: &Value) -> Result<Vec<(&'static str, String)>, String> {
    let mut tokens = Vec::new();
    for name in SPECIAL_TOKENS {
        let text = match config.get(name) {
            None | Some(Value::Null) => continue,
            Some(Value::String(text)) => text,
            Some(value) => value
                .get("content")
                .and_then(Value::as_str)
                .ok_or_else(|| format!("{name} must be a string or an object with content"))?,
        };
        tokens.push((name, text.to_owned()));
    }
    Ok(tokens)
}

#[cfg(test)]
mod tests;
