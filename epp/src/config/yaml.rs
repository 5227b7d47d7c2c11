//! A YAML or JSON document as a tree in which every value knows its line and column.
//!
//! Errors of a configuration are only as good as the place they point at, so values are read from
//! this tree and not through a deserializer that forgets where they stood. What a hostile or broken
//! file could blow up is bounded before the parser sees it: its size, the nesting of blocks (the
//! parser recurses) and the copies that anchors make.

use saphyr::{LoadableYamlNode, MarkedYaml, Scalar, YamlData};

/// Larger texts are refused.
pub const TEXT_BYTES_MAX: usize = 1 << 20;

/// Values nested deeper are refused. The deepest known configuration has eight levels.
const DEPTH_MAX: usize = 48;

/// Columns of indentation and list marks before the first value of a line. Each nested block takes
/// at least half a column, so this bounds the recursion of the parser.
const BLOCK_COLUMNS_MAX: usize = 160;

/// The parser copies what an anchor names, and anchors nest: so many anchors, times the bytes of the
/// text, are taken.
const ANCHOR_BYTES_MAX: usize = 4 << 20;

/// Where something stands in a text, both counted from 1; columns in characters.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Place {
    pub line: usize,
    pub column: usize,
}

impl Place {
    /// Where a text begins.
    pub const START: Self = Self { line: 1, column: 1 };
}

/// A value and where it stands.
#[derive(Clone, PartialEq, Debug)]
pub struct Node {
    pub place: Place,
    pub content: Content,
}

/// A value.
#[derive(Clone, PartialEq, Debug)]
pub enum Content {
    Null,
    Boolean(bool),
    Integer(i64),
    /// Finite.
    Float(f64),
    Text(String),
    List(Vec<Node>),
    Map(Vec<Entry>),
}

/// A field of a map.
#[derive(Clone, PartialEq, Debug)]
pub struct Entry {
    pub key: String,
    /// Of the key.
    pub place: Place,
    pub value: Node,
}

/// Why a text is no document.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SyntaxError {
    pub place: Place,
    pub reason: String,
}

impl SyntaxError {
    fn new(place: Place, reason: impl Into<String>) -> Self {
        Self {
            place,
            reason: reason.into(),
        }
    }
}

/// Reads the one document of a text. A text without any is null.
pub fn parse(text: &str) -> Result<Node, SyntaxError> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    check_bounds(text)?;
    let documents = MarkedYaml::load_from_str(text).map_err(|error| {
        let marker = error.marker();
        let place = Place {
            line: marker.line().max(1),
            column: marker.col() + 1,
        };
        SyntaxError::new(place, error.info())
    })?;
    if let Some(second) = documents.get(1) {
        let reason = "a second document begins here; a configuration is one document";
        return Err(SyntaxError::new(place_of(second), reason));
    }
    match documents.into_iter().next() {
        Some(document) => convert(document, 0),
        None => Ok(Node {
            place: Place::START,
            content: Content::Null,
        }),
    }
}

fn check_bounds(text: &str) -> Result<(), SyntaxError> {
    if text.len() > TEXT_BYTES_MAX {
        let reason = format!("larger than {TEXT_BYTES_MAX} bytes");
        return Err(SyntaxError::new(Place::START, reason));
    }
    let mut anchors = 0;
    for (index, line) in text.split(['\n', '\r']).enumerate() {
        let place = Place {
            line: index + 1,
            column: 1,
        };
        // The parser takes a zero byte for the end of the text and would forget the rest.
        if line.contains('\0') {
            return Err(SyntaxError::new(place, "holds a zero byte"));
        }
        if block_columns(line) > BLOCK_COLUMNS_MAX {
            let reason = format!("indented by more than {BLOCK_COLUMNS_MAX} columns");
            return Err(SyntaxError::new(place, reason));
        }
        anchors += line.matches('&').count();
        if anchors.saturating_mul(text.len()) > ANCHOR_BYTES_MAX {
            return Err(SyntaxError::new(place, "too many anchors for its size"));
        }
    }
    Ok(())
}

/// Characters before the first value of a line.
fn block_columns(line: &str) -> usize {
    line.bytes()
        .take_while(|byte| matches!(byte, b' ' | b'\t' | b'-' | b'?' | b':'))
        .count()
}

fn place_of(node: &MarkedYaml<'_>) -> Place {
    Place {
        line: node.span.start.line().max(1),
        column: node.span.start.col() + 1,
    }
}

fn convert(node: MarkedYaml<'_>, depth: usize) -> Result<Node, SyntaxError> {
    let place = place_of(&node);
    if depth > DEPTH_MAX {
        let reason = format!("nested deeper than {DEPTH_MAX} levels");
        return Err(SyntaxError::new(place, reason));
    }
    let content = match node.data {
        YamlData::Value(scalar) => scalar_content(scalar, place)?,
        YamlData::Sequence(items) => Content::List(
            items
                .into_iter()
                .map(|item| convert(item, depth + 1))
                .collect::<Result<_, _>>()?,
        ),
        YamlData::Mapping(entries) => Content::Map(
            entries
                .into_iter()
                .map(|(key, value)| convert_entry(key, value, depth + 1))
                .collect::<Result<_, _>>()?,
        ),
        YamlData::Tagged(tag, _) => {
            let reason = format!("the tag {tag} has no meaning here");
            return Err(SyntaxError::new(place, reason));
        }
        YamlData::Representation(..) | YamlData::Alias(_) | YamlData::BadValue => {
            return Err(SyntaxError::new(place, "not a value"));
        }
    };
    Ok(Node { place, content })
}

fn convert_entry(
    key: MarkedYaml<'_>,
    value: MarkedYaml<'_>,
    depth: usize,
) -> Result<Entry, SyntaxError> {
    let key = convert(key, depth)?;
    let name = match key.content {
        Content::Text(name) => name,
        Content::Integer(number) => number.to_string(),
        Content::Boolean(value) => value.to_string(),
        Content::Null | Content::Float(_) | Content::List(_) | Content::Map(_) => {
            return Err(SyntaxError::new(key.place, "a field's name must be text"));
        }
    };
    Ok(Entry {
        key: name,
        place: key.place,
        value: convert(value, depth)?,
    })
}

fn scalar_content(scalar: Scalar<'_>, place: Place) -> Result<Content, SyntaxError> {
    Ok(match scalar {
        Scalar::Null => Content::Null,
        Scalar::Boolean(value) => Content::Boolean(value),
        Scalar::Integer(value) => Content::Integer(value),
        Scalar::FloatingPoint(value) if value.is_finite() => Content::Float(value.into_inner()),
        Scalar::FloatingPoint(_) => {
            return Err(SyntaxError::new(place, "not a finite number"));
        }
        Scalar::String(text) => Content::Text(text.into_owned()),
    })
}

impl Node {
    /// The field of a map; null counts as absent.
    pub fn get(&self, name: &str) -> Option<&Self> {
        let Content::Map(entries) = &self.content else {
            return None;
        };
        let entry = entries.iter().find(|entry| entry.key == name)?;
        (entry.value.content != Content::Null).then_some(&entry.value)
    }

    /// The same value without its places.
    pub fn to_json(&self) -> serde_json::Value {
        use serde_json::Value;
        match &self.content {
            Content::Null => Value::Null,
            Content::Boolean(value) => Value::Bool(*value),
            Content::Integer(value) => Value::from(*value),
            Content::Float(value) => Value::from(*value),
            Content::Text(text) => Value::from(text.as_str()),
            Content::List(items) => items.iter().map(Self::to_json).collect(),
            Content::Map(entries) => Value::Object(
                entries
                    .iter()
                    .map(|entry| (entry.key.clone(), entry.value.to_json()))
                    .collect(),
            ),
        }
    }

    /// What the value is, for an error.
    pub fn kind(&self) -> &'static str {
        match self.content {
            Content::Null => "nothing",
            Content::Boolean(_) => "true or false",
            Content::Integer(_) => "a whole number",
            Content::Float(_) => "a number",
            Content::Text(_) => "text",
            Content::List(_) => "a list",
            Content::Map(_) => "a group of fields",
        }
    }

    /// The place of what a path such as `list[0].field` names below this value; of the nearest
    /// value above it where it is not written.
    pub fn place_at(&self, path: &str) -> Place {
        let mut node = self;
        let mut place = self.place;
        for step in path.split(['.', '[', ']']).filter(|step| !step.is_empty()) {
            let next = match &node.content {
                Content::Map(entries) => entries
                    .iter()
                    .find(|entry| entry.key == step)
                    .map(|entry| (&entry.value, entry.place)),
                Content::List(items) => step
                    .parse::<usize>()
                    .ok()
                    .and_then(|at| items.get(at))
                    .map(|item| (item, item.place)),
                _ => None,
            };
            let Some((value, at)) = next else { break };
            // A group or a list begins on a later line than its name.
            place = match value.content {
                Content::Map(_) | Content::List(_) => at,
                _ => value.place,
            };
            node = value;
        }
        place
    }
}

#[cfg(test)]
mod tests {
    use std::fmt::Write as _;

    use proptest::prelude::*;

    use super::*;

    fn reason(text: &str) -> String {
        parse(text).unwrap_err().reason
    }

    #[test]
    fn every_value_knows_its_place() {
        let tree = parse("a: 1\nlist:\n  - x\n  - {deep: true}\n").unwrap();
        let place = |path| {
            let place = tree.place_at(path);
            (place.line, place.column)
        };
        assert_eq!(place("a"), (1, 4));
        assert_eq!(place("list[0]"), (3, 5));
        assert_eq!(place("list[1].deep"), (4, 12));
        assert_eq!(place("list[1].absent.more"), (4, 5));
        assert_eq!(place("list"), (2, 1));
    }

    #[test]
    fn json_is_read_too() {
        let tree = parse("{\n\t\"a\": [1, 2.5, null, \"\\u00e9\"],\r\n\t\"b\": {}\n}").unwrap();
        assert_eq!(
            tree.to_json(),
            serde_json::json!({"a": [1, 2.5, null, "é"], "b": {}})
        );
    }

    #[test]
    fn what_is_no_single_plain_document_is_refused() {
        assert!(reason("a: 1\na: 2\n").contains("duplicated key"));
        assert!(reason("a: 1\n---\nb: 2\n").contains("one document"));
        assert!(reason("a: !secret x\n").contains("secret"));
        assert!(reason("a: .inf\n").contains("finite"));
        assert!(reason("? [1]\n: 2\n").contains("must be text"));
        assert!(reason("a: \0\nb: 1\n").contains("zero byte"));
        assert_eq!(parse("a: [1\nb: 2\n").unwrap_err().place.line, 2);
        assert_eq!(parse("").unwrap().content, Content::Null);
        assert_eq!(parse("# nothing\n").unwrap().content, Content::Null);
    }

    #[test]
    fn anchors_are_followed_and_bounded() {
        let tree = parse("base: &base {a: 1}\ncopy: *base\n").unwrap();
        assert_eq!(tree.get("copy").unwrap().to_json()["a"], 1);
        let mut bomb = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n".to_owned();
        for level in 1..12 {
            let one = format!("*a{}, ", level - 1);
            let _ = writeln!(bomb, "a{level}: &a{level} [{}x]", one.repeat(10));
        }
        assert!(reason(&bomb).contains("alias"), "{}", reason(&bomb));
        let many = format!("a: [{}]\n", "&x 1, ".repeat(20_000));
        assert!(reason(&many).contains("anchors"));
    }

    #[test]
    fn depth_and_size_are_bounded_in_every_style() {
        let lists = format!("a: {}1", "- ".repeat(400_000));
        let flow = format!("a: {}", "[".repeat(500_000));
        let mut indented = String::new();
        for at in 0..120 {
            let _ = writeln!(indented, "{}k:", " ".repeat(at));
        }
        let dashes = "- ".repeat(80) + "1";
        let braces = "{a: ".repeat(200) + "1" + &"}".repeat(200);
        for text in [
            &format!("b\n{lists}"),
            &lists,
            &flow,
            &indented,
            &dashes,
            &braces,
        ] {
            assert!(parse(text).is_err());
        }
        assert!(reason(&"- ".repeat(200)).contains("columns"));
        assert!(reason(&braces).contains("deeper"));
        assert!(reason(&"#".repeat(TEXT_BYTES_MAX + 1)).contains("larger"));
    }

    proptest! {
        #[test]
        fn no_text_panics(text in "\\PC{0,200}", yaml in "[-?:&*!|>'\"\\[\\]{},# \n\ta-c0-2]{0,120}") {
            let _ = parse(&text);
            let _ = parse(&yaml);
        }
    }
}
