//! How Python writes values, where chat templates rely on it: `json.dumps` and `repr`.
//!
//! Templates are written for Jinja2, which prints through Python. A tool's schema that comes out
//! with other separators, or `true` in place of `True`, is another prompt to the model than the one
//! it was trained on.

use std::fmt::Write as _;

use serde_json::{Number, Value};

/// Layout of [`json_dumps`]. The default is that of transformers' `tojson` filter.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct JsonLayout {
    /// Spaces per level; none puts everything on one line.
    pub(super) indent: Option<usize>,
    /// What stands between items, before the line break of an indented layout.
    pub(super) item_separator: String,
    /// What stands between a key and its value.
    pub(super) key_separator: String,
    /// Whether keys come in the order of their characters rather than their own.
    pub(super) sort_keys: bool,
    /// Whether characters beyond ASCII are escaped.
    pub(super) ensure_ascii: bool,
}

impl JsonLayout {
    pub(super) fn new(indent: Option<usize>) -> Self {
        Self {
            indent,
            item_separator: if indent.is_some() { "," } else { ", " }.to_owned(),
            key_separator: ": ".to_owned(),
            sort_keys: false,
            ensure_ascii: false,
        }
    }
}

/// `json.dumps(value)`.
pub(super) fn json_dumps(value: &Value, layout: &JsonLayout) -> String {
    let mut writer = JsonWriter {
        layout,
        out: String::new(),
    };
    writer.value(value, 0);
    writer.out
}

struct JsonWriter<'a> {
    layout: &'a JsonLayout,
    out: String,
}

impl JsonWriter<'_> {
    fn value(&mut self, value: &Value, level: usize) {
        match value {
            Value::Null => self.out.push_str("null"),
            Value::Bool(true) => self.out.push_str("true"),
            Value::Bool(false) => self.out.push_str("false"),
            Value::Number(number) => self.out.push_str(&number_text(number)),
            Value::String(text) => self.string(text),
            Value::Array(items) if items.is_empty() => self.out.push_str("[]"),
            Value::Array(items) => {
                self.out.push('[');
                for (index, item) in items.iter().enumerate() {
                    self.start_item(index, level + 1);
                    self.value(item, level + 1);
                }
                self.line(level);
                self.out.push(']');
            }
            Value::Object(fields) if fields.is_empty() => self.out.push_str("{}"),
            Value::Object(fields) => {
                let mut entries: Vec<_> = fields.iter().collect();
                if self.layout.sort_keys {
                    entries.sort_by_key(|(key, _)| *key);
                }
                self.out.push('{');
                for (index, (key, value)) in entries.into_iter().enumerate() {
                    self.start_item(index, level + 1);
                    self.string(key);
                    self.out.push_str(&self.layout.key_separator);
                    self.value(value, level + 1);
                }
                self.line(level);
                self.out.push('}');
            }
        }
    }

    fn start_item(&mut self, index: usize, level: usize) {
        if index > 0 {
            self.out.push_str(&self.layout.item_separator);
        }
        self.line(level);
    }

    fn line(&mut self, level: usize) {
        if let Some(indent) = self.layout.indent {
            self.out.push('\n');
            self.out.extend(std::iter::repeat_n(' ', indent * level));
        }
    }

    fn string(&mut self, text: &str) {
        self.out.push('"');
        for character in text.chars() {
            match character {
                '"' => self.out.push_str("\\\""),
                '\\' => self.out.push_str("\\\\"),
                '\n' => self.out.push_str("\\n"),
                '\r' => self.out.push_str("\\r"),
                '\t' => self.out.push_str("\\t"),
                '\u{8}' => self.out.push_str("\\b"),
                '\u{c}' => self.out.push_str("\\f"),
                _ if character < ' ' || (self.layout.ensure_ascii && character > '~') => {
                    for unit in character.encode_utf16(&mut [0; 2]) {
                        push_formatted(&mut self.out, format_args!("\\u{unit:04x}"));
                    }
                }
                _ => self.out.push(character),
            }
        }
        self.out.push('"');
    }
}

/// `repr(value)`; of anything but a string, also `str(value)`.
pub(super) fn repr(value: &Value) -> String {
    match value {
        Value::Null => "None".to_owned(),
        Value::Bool(true) => "True".to_owned(),
        Value::Bool(false) => "False".to_owned(),
        Value::Number(number) => number_text(number),
        Value::String(text) => repr_text(text),
        Value::Array(items) => {
            let items: Vec<_> = items.iter().map(repr).collect();
            format!("[{}]", items.join(", "))
        }
        Value::Object(fields) => {
            let fields: Vec<_> = fields
                .iter()
                .map(|(key, value)| format!("{}: {}", repr_text(key), repr(value)))
                .collect();
            format!("{{{}}}", fields.join(", "))
        }
    }
}

/// Python quotes with apostrophes unless the text has some and no quotation marks.
fn repr_text(text: &str) -> String {
    let quote = if text.contains('\'') && !text.contains('"') {
        '"'
    } else {
        '\''
    };
    let mut out = String::with_capacity(text.len() + 2);
    out.push(quote);
    for character in text.chars() {
        match character {
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            _ if character == quote => {
                out.push('\\');
                out.push(quote);
            }
            _ if character < ' ' || ('\u{7f}'..='\u{a0}').contains(&character) => {
                push_formatted(&mut out, format_args!("\\x{:02x}", character as u32));
            }
            _ => out.push(character),
        }
    }
    out.push(quote);
    out
}

fn number_text(number: &Number) -> String {
    if number.is_f64() {
        number.as_f64().map(float_text).unwrap_or_default()
    } else {
        number.to_string()
    }
}

/// `repr` of a float: the shortest digits that read back as the same number, with an exponent below
/// 1e-4 and from 1e16 on. JSON has no number that is not finite.
fn float_text(value: f64) -> String {
    let scientific = format!("{value:e}");
    let (digits, exponent) = scientific.split_once('e').unwrap_or((&scientific, "0"));
    let exponent: i32 = exponent.parse().unwrap_or(0);
    if (-4..16).contains(&exponent) {
        let plain = format!("{value}");
        return if plain.contains('.') {
            plain
        } else {
            plain + ".0"
        };
    }
    let sign = if exponent < 0 { '-' } else { '+' };
    format!("{digits}e{sign}{:02}", exponent.abs())
}

fn push_formatted(out: &mut String, arguments: std::fmt::Arguments<'_>) {
    out.write_fmt(arguments)
        .expect("a String accepts every write");
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn json_has_pythons_separators_and_no_html_escapes() {
        let value =
            json!({"b": [1, 2.0, "<é&'\u{1}\">"], "a": {"x": null, "y": true}, "e": [], "f": {}});
        assert_eq!(
            json_dumps(&value, &JsonLayout::new(None)),
            r#"{"b": [1, 2.0, "<é&'\u0001\">"], "a": {"x": null, "y": true}, "e": [], "f": {}}"#
        );
    }

    #[test]
    fn json_layouts() {
        let value = json!({"b": [1, "é😀"], "a": {}});
        assert_eq!(
            json_dumps(&value, &JsonLayout::new(Some(2))),
            "{\n  \"b\": [\n    1,\n    \"é😀\"\n  ],\n  \"a\": {}\n}"
        );
        let layout = JsonLayout {
            item_separator: ",".to_owned(),
            key_separator: ":".to_owned(),
            sort_keys: true,
            ensure_ascii: true,
            ..JsonLayout::new(None)
        };
        assert_eq!(
            json_dumps(&value, &layout),
            r#"{"a":{},"b":[1,"\u00e9\ud83d\ude00"]}"#
        );
    }

    #[test]
    fn values_print_as_in_python() {
        let value = json!([null, true, "it's", "say \"it's\"", "a\n\u{7f}", {"k": 1.5}]);
        assert_eq!(
            repr(&value),
            r#"[None, True, "it's", 'say "it\'s"', 'a\n\x7f', {'k': 1.5}]"#
        );
    }

    #[test]
    fn floats_print_as_in_python() {
        let cases = [
            (1.0, "1.0"),
            (0.1, "0.1"),
            (-2.5, "-2.5"),
            (1e15, "1000000000000000.0"),
            (1e16, "1e+16"),
            (1.5e300, "1.5e+300"),
            (1e-4, "0.0001"),
            (1e-5, "1e-05"),
        ];
        for (value, expected) in cases {
            assert_eq!(float_text(value), expected);
        }
    }
}
