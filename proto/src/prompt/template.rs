//! A chat template: Jinja2 as transformers runs it, on minijinja.
//!
//! What makes the two agree, beyond the language itself:
//! - blocks are trimmed as transformers asks (`trim_blocks`, `lstrip_blocks`);
//! - methods of Python's strings, lists and dicts work (`.strip()`, `.items()`, …);
//! - `tojson` writes what Python's `json.dumps` would, not minijinja's HTML-safe JSON, and values
//!   print as in Python;
//! - `raise_exception` and `strftime_now` exist, and so does `{% generation %}`, which only marks
//!   text;
//! - maps keep the order of the request's keys.
//!
//! A template comes with the model and is trusted; the conversation is not, and cannot reach beyond
//! its variables.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Enumerator, Kwargs, Object, ObjectRepr, Serde, ValueKind};
use minijinja::{AutoEscape, Environment, Error, ErrorKind, Output, State, Value, context};
use minijinja_contrib::pycompat;

use super::messages::{check_messages, join_text_parts};
use super::python::{self, JsonLayout};
use super::{ChatPrompt, PromptError, clock};

/// Names of the two templates inside the environment; they show in error messages.
const DEFAULT: &str = "chat_template";
const TOOL_USE: &str = "chat_template.tool_use";

/// The template text of a model: one for all, or a second for requests that bring tools.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct TemplateSource {
    pub(super) default: String,
    pub(super) tool_use: Option<String>,
}

impl TemplateSource {
    pub(super) fn single(default: String) -> Self {
        Self {
            default,
            tool_use: None,
        }
    }
}

/// A compiled chat template with the special tokens it may name.
pub(super) struct ChatTemplate {
    environment: Environment<'static>,
    special_tokens: Vec<(&'static str, String)>,
    default_iterates: bool,
    /// None where tools do not have a template of their own.
    tool_use_iterates: Option<bool>,
}

impl fmt::Debug for ChatTemplate {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("ChatTemplate")
            .field("special_tokens", &self.special_tokens)
            .field("default_iterates", &self.default_iterates)
            .field("tool_use_iterates", &self.tool_use_iterates)
            .finish_non_exhaustive()
    }
}

impl ChatTemplate {
    /// Compiles the template; an error says what is wrong and on which line.
    pub(super) fn new(
        source: TemplateSource,
        special_tokens: Vec<(&'static str, String)>,
    ) -> Result<Self, String> {
        let mut environment = environment().map_err(|error| error.to_string())?;
        let mut add = |name: &'static str, text: String| {
            environment
                .add_template_owned(name, neutralise_generation(&text))
                .map_err(|error| error.to_string())
        };
        let has_tool_use = source.tool_use.is_some();
        add(DEFAULT, source.default)?;
        if let Some(text) = source.tool_use {
            add(TOOL_USE, text)?;
        }
        let mut template = Self {
            environment,
            special_tokens,
            default_iterates: false,
            tool_use_iterates: None,
        };
        template.default_iterates = template.iterates_content(DEFAULT);
        template.tool_use_iterates = has_tool_use.then(|| template.iterates_content(TOOL_USE));
        Ok(template)
    }

    /// The text of a conversation.
    pub(super) fn render(&self, chat: &ChatPrompt) -> Result<String, PromptError> {
        let list = check_messages(&chat.messages)?;
        let tools = chat.tools.as_ref().filter(|tools| !tools.is_null());
        let (name, iterates) = match (tools, self.tool_use_iterates) {
            (Some(_), Some(iterates)) => (TOOL_USE, iterates),
            _ => (DEFAULT, self.default_iterates),
        };
        let messages = if iterates {
            Value::from(Serde(&chat.messages))
        } else {
            Value::from(Serde(join_text_parts(list)))
        };
        let fixed = context! {
            messages,
            tools => tools.map(|tools| Value::from(Serde(tools))),
            add_generation_prompt => chat.add_generation_prompt,
        };
        let kwargs = match &chat.template_kwargs {
            Some(kwargs) => Value::from(Serde(kwargs)),
            None => Value::from(()),
        };
        self.run(name, fixed, kwargs)
            .map_err(|error| render_error(&error))
    }

    /// Renders with `fixed` before the special tokens before `kwargs`. Documents are one of the latter, and exist
    /// where there are none.
    fn run(&self, name: &str, fixed: Value, kwargs: Value) -> Result<String, Error> {
        let special = Value::from_pairs(
            self.special_tokens
                .iter()
                .map(|(name, text)| (*name, text.as_str())),
        );
        let absent = context! { documents => () };
        let variables =
            context! { ..fixed, ..context! { ..special, ..context! { ..kwargs, ..absent } } };
        self.environment.get_template(name)?.render(variables)
    }

    /// Whether the template looks into a message's content as a list. Such a template gets the
    /// parts as the client sent them; any other would print the list's raw form. It is found out by
    /// rendering a content that notes when it is taken apart, which sees through macros and
    /// assignments where a look at the text would not.
    fn iterates_content(&self, name: &str) -> bool {
        let taken_apart = Arc::new(AtomicBool::new(false));
        let content = Value::from_object(ContentProbe(taken_apart.clone()));
        let message = context! { role => "user", content };
        let fixed = context! {
            messages => vec![message],
            tools => (),
            add_generation_prompt => true,
        };
        // A template that fails over the probe has not taken it apart, or has said so before it
        // failed.
        let _ = self.run(name, fixed, Value::from(()));
        taken_apart.load(Ordering::Relaxed)
    }
}

/// A message content of one text part. Asking for its length, or whether it contains something,
/// leaves no trace: templates ask that of strings, too.
#[derive(Debug)]
struct ContentProbe(Arc<AtomicBool>);

impl Object for ContentProbe {
    fn repr(self: &Arc<Self>) -> ObjectRepr {
        ObjectRepr::Seq
    }

    fn get_value(self: &Arc<Self>, key: &Value) -> Option<Value> {
        (key.as_usize()? == 0).then(|| Value::from_object(PartProbe(self.0.clone())))
    }

    fn enumerate(self: &Arc<Self>) -> Enumerator {
        Enumerator::Seq(1)
    }

    fn render(self: &Arc<Self>, _: &mut fmt::Formatter<'_>) -> fmt::Result {
        Ok(())
    }
}

/// The text part, which notes when one of its fields is asked for.
#[derive(Debug)]
struct PartProbe(Arc<AtomicBool>);

impl Object for PartProbe {
    fn get_value(self: &Arc<Self>, key: &Value) -> Option<Value> {
        let field = match key.as_str()? {
            "type" => "text",
            "text" => "",
            _ => return None,
        };
        self.0.store(true, Ordering::Relaxed);
        Some(Value::from(field))
    }

    fn enumerate(self: &Arc<Self>) -> Enumerator {
        Enumerator::Str(&["type", "text"])
    }
}

fn environment() -> Result<Environment<'static>, Error> {
    let mut environment = Environment::new();
    environment.set_syntax(
        SyntaxConfig::builder()
            .trim_blocks(true)
            .lstrip_blocks(true)
            .build()?,
    );
    environment.set_auto_escape_callback(|_| AutoEscape::None);
    // Debug information would put the conversation into error messages.
    environment.set_debug(false);
    environment.set_unknown_method_callback(pycompat::unknown_method_callback);
    environment.set_formatter(write_value);
    environment.add_filter("tojson", tojson);
    environment.add_function("raise_exception", raise_exception);
    environment.add_function("strftime_now", |format: &str| {
        clock::strftime(format, clock::now_s())
    });
    Ok(environment)
}

/// Prints what an expression comes to as Python does.
fn write_value(
    out: &mut Output<'_>,
    state: &mut State<'_, '_>,
    value: &Value,
) -> Result<(), Error> {
    match value.kind() {
        ValueKind::Bool | ValueKind::None | ValueKind::Number | ValueKind::Seq | ValueKind::Map
            if value.downcast_object_ref::<ContentProbe>().is_none() =>
        {
            out.write_str(&python::repr(&to_json(value)?))
                .map_err(Error::from)
        }
        _ => minijinja::escape_formatter(out, state, value),
    }
}

/// The filter as transformers defines it: `tojson(ensure_ascii=False, indent=None, separators=None,
/// sort_keys=False)`.
#[expect(
    clippy::needless_pass_by_value,
    reason = "a filter's arguments are passed by value"
)]
fn tojson(value: &Value, kwargs: Kwargs) -> Result<Value, Error> {
    let mut layout = JsonLayout::new(kwargs.get::<Option<usize>>("indent")?);
    if let Some((items, keys)) = kwargs
        .get::<Option<Vec<String>>>("separators")?
        .and_then(|pair| <[String; 2]>::try_from(pair).ok())
        .map(<(String, String)>::from)
    {
        layout.item_separator = items;
        layout.key_separator = keys;
    }
    layout.sort_keys = kwargs.get::<Option<bool>>("sort_keys")?.unwrap_or(false);
    layout.ensure_ascii = kwargs.get::<Option<bool>>("ensure_ascii")?.unwrap_or(false);
    kwargs.assert_all_used()?;
    Ok(Value::from(python::json_dumps(&to_json(value)?, &layout)))
}

fn to_json(value: &Value) -> Result<serde_json::Value, Error> {
    serde_json::to_value(value).map_err(|error| {
        Error::new(ErrorKind::InvalidOperation, "cannot write a value as JSON").with_source(error)
    })
}

/// What a template said when it refused a conversation.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Refusal(String);

fn raise_exception(reason: String) -> Result<Value, Error> {
    Err(
        Error::new(ErrorKind::InvalidOperation, "the template refused")
            .with_source(Refusal(reason)),
    )
}

fn render_error(error: &Error) -> PromptError {
    let mut source: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(cause) = source {
        if let Some(Refusal(reason)) = cause.downcast_ref() {
            return PromptError::Refused {
                reason: reason.clone(),
            };
        }
        source = cause.source();
    }
    PromptError::Render {
        reason: error.to_string(),
    }
}

/// Rewrites `{% generation %}` and `{% endgeneration %}` to a condition that always holds. The tag
/// only marks which text the model wrote, for training; a condition in its place keeps the
/// whitespace control as it is written.
fn neutralise_generation(source: &str) -> String {
    let mut out = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(start) = rest.find("{%") {
        let (before, tag) = rest.split_at(start);
        out.push_str(before);
        let end = tag.find("%}").map_or(tag.len(), |end| end + 2);
        let (tag, after) = tag.split_at(end);
        let inner = tag
            .trim_start_matches("{%")
            .trim_end_matches("%}")
            .trim_matches(['-', '+'])
            .trim();
        match inner {
            "generation" => out.push_str(&tag.replace("generation", "if true")),
            "endgeneration" => out.push_str(&tag.replace("endgeneration", "endif")),
            _ => out.push_str(tag),
        }
        rest = after;
    }
    out.push_str(rest);
    out
}

#[cfg(test)]
mod tests;
