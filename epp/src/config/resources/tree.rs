//! A YAML document as a tree whose every value knows its line.

use std::fmt;

use serde::de::{MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};
use serde_saphyr::Spanned;

use super::objects::Fault;

/// Nesting beyond this is refused; the manifests read here nest to a third of it.
const DEPTH_MAX: usize = 64;
/// Values that aliases may repeat, all together; a document that asks for more is refused. Few
/// manifests use aliases at all.
const REPLAYED_MAX: usize = 10_000;

/// A value and its line, which counts from 1.
#[derive(Clone, PartialEq, Debug)]
pub(super) struct Node {
    pub(super) value: Value,
    pub(super) line: u64,
}

#[derive(Clone, PartialEq, Debug)]
pub(super) enum Value {
    Null,
    Bool(bool),
    Integer(i64),
    /// Numbers that are no integers, or too large; kept for the message that refuses them.
    Float(f64),
    Text(String),
    List(Vec<Node>),
    /// In the order of the text. A key that stands twice is an error of the parser.
    Object(Vec<(String, Node)>),
}

/// Parses one document, whose first line is the one after `lines_before`.
pub(super) fn parse(text: &str, lines_before: u64) -> Result<Node, Fault> {
    let options = serde_saphyr::options! {
        budget: serde_saphyr::budget! { max_depth: DEPTH_MAX },
        alias_limits: serde_saphyr::alias_limits! { max_total_replayed_events: REPLAYED_MAX },
    };
    let read = serde_saphyr::from_str_with_options::<Spanned<Raw>>(text, options);
    let root = read.map_err(|error| {
        let line = error.location().map_or(1, |location| location.line());
        // The parser's message goes on with an excerpt of the file; its first line says what is
        // wrong.
        let reason = error.without_snippet().to_string();
        Fault {
            line: lines_before + line,
            path: String::new(),
            reason: reason.lines().next().unwrap_or_default().to_owned(),
        }
    })?;
    Ok(node(root, lines_before))
}

impl Value {
    /// What the value is, for messages.
    pub(super) fn shape(&self) -> &'static str {
        match self {
            Self::Null => "null",
            Self::Bool(_) => "a boolean",
            Self::Integer(_) | Self::Float(_) => "a number",
            Self::Text(_) => "text",
            Self::List(_) => "a list",
            Self::Object(_) => "an object",
        }
    }
}

fn node(spanned: Spanned<Raw>, lines_before: u64) -> Node {
    let line = lines_before + spanned.referenced.line();
    let value = match spanned.value {
        Raw::Leaf(value) => value,
        Raw::List(list) => {
            let list = list.into_iter();
            Value::List(list.map(|raw| node(raw, lines_before)).collect())
        }
        Raw::Object(fields) => {
            let fields = fields.into_iter();
            Value::Object(
                fields
                    .map(|(key, raw)| (key, node(raw, lines_before)))
                    .collect(),
            )
        }
    };
    Node { value, line }
}

/// What serde builds.
enum Raw {
    Leaf(Value),
    List(Vec<Spanned<Raw>>),
    Object(Vec<(String, Spanned<Raw>)>),
}

impl<'de> Deserialize<'de> for Raw {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(RawVisitor)
    }
}

struct RawVisitor;

impl<'de> Visitor<'de> for RawVisitor {
    type Value = Raw;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("a value")
    }

    fn visit_unit<E>(self) -> Result<Raw, E> {
        Ok(Raw::Leaf(Value::Null))
    }

    fn visit_none<E>(self) -> Result<Raw, E> {
        Ok(Raw::Leaf(Value::Null))
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Raw, D::Error> {
        deserializer.deserialize_any(self)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Raw, E> {
        Ok(Raw::Leaf(Value::Bool(value)))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Raw, E> {
        Ok(Raw::Leaf(Value::Integer(value)))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Raw, E> {
        Ok(Raw::Leaf(match i64::try_from(value) {
            Ok(value) => Value::Integer(value),
            Err(_) => Value::Float(value as f64),
        }))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Raw, E> {
        Ok(Raw::Leaf(Value::Float(value)))
    }

    fn visit_str<E>(self, value: &str) -> Result<Raw, E> {
        Ok(Raw::Leaf(Value::Text(value.to_owned())))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Raw, A::Error> {
        let mut values = Vec::new();
        while let Some(value) = list.next_element()? {
            values.push(value);
        }
        Ok(Raw::List(values))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Raw, A::Error> {
        let mut fields = Vec::new();
        while let Some(field) = map.next_entry()? {
            fields.push(field);
        }
        Ok(Raw::Object(fields))
    }
}
