//! Reading the fields of a JSON body: what the APIs have in common.
//!
//! One pass of serde over the body. Fields that are only passed on are skipped, optional ones are
//! borrowed as raw JSON and looked at leniently afterwards, and only a conversation is built as a
//! tree, because a chat template walks it. A tree is as deep as serde_json's recursion limit at
//! most; what is skipped costs no stack.

use std::borrow::Cow;
use std::fmt;
use std::marker::PhantomData;

use pointsman_proto::prompt::Prompt;
use serde::de::value::MapAccessDeserializer;
use serde::de::{IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};
use serde_json::value::RawValue;
use serde_json::{Map, Value};

use super::{InferenceRequest, ParseError};

/// A body that must be one JSON object. (serde takes an array of the right length for a struct,
/// too.)
pub(super) fn read<'a, T: Deserialize<'a>>(body: &'a [u8]) -> Result<T, ParseError> {
    let Object(fields) = serde_json::from_slice(body)?;
    Ok(fields)
}

impl InferenceRequest {
    /// Takes the model name and where its JSON string lies in the body; none where the field is no
    /// text, or an empty one. The field must lie in the body.
    pub(super) fn set_model(&mut self, field: Option<&RawValue>, body: &[u8]) {
        let Some(raw) = field.map(RawValue::get) else {
            return;
        };
        let Ok(name) = serde_json::from_str::<Cow<'_, str>>(raw) else {
            return;
        };
        if !name.is_empty() {
            self.model = name.into_owned();
            // The raw value borrows from the body, so the difference of the addresses is its offset.
            let start = raw.as_ptr() as usize - body.as_ptr() as usize;
            self.model_span = Some(start..start + raw.len());
        }
    }

    /// Refuses a request of an API that cannot do without a model.
    pub(super) fn with_model(self) -> Result<Self, ParseError> {
        if self.model.is_empty() {
            return Err(ParseError::ModelMissing);
        }
        Ok(self)
    }
}

/// The value if it has the type that the picker expects, and nothing if it has another.
pub(super) fn typed<'a, T: Deserialize<'a>>(field: Option<&'a RawValue>) -> Option<T> {
    serde_json::from_str(field?.get()).ok()
}

/// Whether a field holds anything but null.
pub(super) fn is_given(field: Option<&RawValue>) -> bool {
    field.is_some_and(|raw| raw.get() != "null")
}

/// `stream_options.include_usage`
pub(super) fn includes_usage(stream_options: Option<&RawValue>) -> bool {
    #[derive(Deserialize)]
    struct StreamOptions {
        include_usage: Option<bool>,
    }
    typed::<StreamOptions>(stream_options)
        .and_then(|options| options.include_usage)
        .unwrap_or(false)
}

/// A prompt is text, a list of texts, a list of token ids, or a list of such lists.
pub(super) fn first_prompt(raw: &RawValue) -> Option<Prompt> {
    let json = raw.get();
    if json.starts_with('"') {
        return serde_json::from_str(json).ok().map(Prompt::Text);
    }
    let inside = json.strip_prefix('[')?.trim_ascii_start();
    match inside.as_bytes().first()? {
        b'"' => first_element(json).map(Prompt::Text),
        b'[' => first_element(json).map(Prompt::Tokens),
        b']' => None,
        _ => serde_json::from_str(json).ok().map(Prompt::Tokens),
    }
}

/// A value that is an object with something in it.
pub(super) fn object_of(value: Option<Value>) -> Option<Map<String, Value>> {
    match value {
        Some(Value::Object(map)) => Some(map),
        _ => None,
    }
}

/// An object of these fields, in their order. Unlike `json!` it takes the values over.
pub(super) fn object<const N: usize>(fields: [(&str, Value); N]) -> Value {
    let fields = fields.into_iter();
    Value::Object(
        fields
            .map(|(key, value)| (key.to_owned(), value))
            .collect::<Map<_, _>>(),
    )
}

/// A function as a chat template expects it. Fields that are absent, or null, stay away.
pub(super) fn function_tool(name: Value, description: Value, parameters: Value) -> Value {
    let fields = [
        ("name", name),
        ("description", description),
        ("parameters", parameters),
    ];
    let given = fields.into_iter().filter(|(_, value)| !value.is_null());
    let function = given.map(|(key, value)| (key.to_owned(), value));
    object([
        ("type", Value::from("function")),
        ("function", Value::Object(function.collect::<Map<_, _>>())),
    ])
}

/// A field of an object, taken out of it; null where it is missing.
pub(super) fn take(fields: &mut Map<String, Value>, key: &str) -> Value {
    fields.get_mut(key).map(Value::take).unwrap_or_default()
}

/// A text field of an object, taken out of it.
pub(super) fn take_text(fields: &mut Map<String, Value>, key: &str) -> Option<String> {
    match take(fields, key) {
        Value::String(text) => Some(text),
        _ => None,
    }
}

fn first_element<'a, T: Deserialize<'a>>(list: &'a str) -> Option<T> {
    let First(first) = serde_json::from_str(list).ok()?;
    first
}

/// The first element of a list; the others are skipped.
struct First<T>(Option<T>);

impl<'de, T: Deserialize<'de>> Deserialize<'de> for First<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct FirstVisitor<T>(PhantomData<T>);
        impl<'de, T: Deserialize<'de>> Visitor<'de> for FirstVisitor<T> {
            type Value = First<T>;
            fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str("a list")
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<First<T>, A::Error> {
                let first = list.next_element()?;
                while list.next_element::<IgnoredAny>()?.is_some() {}
                Ok(First(first))
            }
        }
        deserializer.deserialize_seq(FirstVisitor(PhantomData))
    }
}

struct Object<T>(T);

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Object<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct ObjectVisitor<T>(PhantomData<T>);
        impl<'de, T: Deserialize<'de>> Visitor<'de> for ObjectVisitor<T> {
            type Value = Object<T>;
            fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str("a JSON object")
            }
            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Object<T>, A::Error> {
                T::deserialize(MapAccessDeserializer::new(map)).map(Object)
            }
        }
        deserializer.deserialize_map(ObjectVisitor(PhantomData))
    }
}
