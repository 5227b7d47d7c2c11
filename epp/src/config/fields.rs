//! Strict reading of a document's tree: unknown fields and wrong types are problems with their
//! place, and reading goes on after them, so that one look shows all that is wrong.

use super::problems::{Problems, shown, suggestion};
use super::yaml::{Content, Entry, Node, Place};

/// A value that remembers where it was written.
#[derive(Clone, PartialEq, Debug)]
pub struct Located<T> {
    pub value: T,
    pub place: Place,
    pub path: String,
}

/// A value of the tree that is being read.
#[derive(Clone, Debug)]
pub struct Cursor<'n> {
    pub node: &'n Node,
    /// From the top of the document.
    pub path: String,
    problems: &'n Problems,
}

impl<'n> Cursor<'n> {
    pub fn top(node: &'n Node, problems: &'n Problems) -> Self {
        Self {
            node,
            path: String::new(),
            problems,
        }
    }

    /// Reports a problem with this value.
    pub fn problem(&self, reason: &str) {
        self.problems.add(self.node.place, &self.path, reason);
    }

    /// A group of fields, all of them known. Unknown ones are problems and are left out.
    pub fn fields(&self, known: &[&str]) -> Option<Fields<'n>> {
        let Content::Map(entries) = &self.node.content else {
            self.expected("a group of fields");
            return None;
        };
        for entry in entries {
            if !known.contains(&entry.key.as_str()) {
                let suggestion = suggestion(&entry.key, known.iter().copied());
                let reason = if suggestion.is_empty() {
                    format!("unknown field; known here: {}", known.join(", "))
                } else {
                    format!("unknown field{suggestion}")
                };
                let path = child(&self.path, &entry.key);
                self.problems.add(entry.place, &path, &reason);
            }
        }
        Some(Fields {
            cursor: self.clone(),
            entries,
        })
    }

    /// A group of fields whose names are free.
    pub fn entries(&self) -> Option<Vec<(&'n Entry, Self)>> {
        let Content::Map(entries) = &self.node.content else {
            self.expected("a group of fields");
            return None;
        };
        let below = |entry: &'n Entry| (entry, self.below(&entry.key, &entry.value));
        Some(entries.iter().map(below).collect())
    }

    /// The items of a list of at most `most`.
    pub fn items(&self, most: usize) -> Option<Vec<Self>> {
        let Content::List(items) = &self.node.content else {
            self.expected("a list");
            return None;
        };
        if items.len() > most {
            self.problem(&format!("more than {most} items"));
        }
        let item = |(position, node)| Self {
            node,
            path: format!("{}[{position}]", self.path),
            problems: self.problems,
        };
        Some(items.iter().take(most).enumerate().map(item).collect())
    }

    /// Text that is not empty.
    pub fn text(&self) -> Option<Located<String>> {
        match &self.node.content {
            Content::Text(text) if text.is_empty() => {
                self.problem("must not be empty");
                None
            }
            Content::Text(text) => Some(self.located(text.clone())),
            _ => {
                self.expected("text");
                None
            }
        }
    }

    pub fn boolean(&self) -> Option<bool> {
        if let Content::Boolean(value) = self.node.content {
            return Some(value);
        }
        self.expected("true or false");
        None
    }

    pub fn number(&self) -> Option<f64> {
        match self.node.content {
            Content::Integer(value) => Some(value as f64),
            Content::Float(value) => Some(value),
            _ => {
                self.expected("a number");
                None
            }
        }
    }

    pub fn integer(&self) -> Option<i32> {
        let Content::Integer(value) = self.node.content else {
            self.expected("a whole number");
            return None;
        };
        let read = i32::try_from(value).ok();
        if read.is_none() {
            self.problem(&format!("{value} is out of range"));
        }
        read
    }

    /// A value that is written as text or as a number, read by `read`.
    pub fn read<T>(&self, what: &str, read: impl FnOnce(&str) -> Result<T, String>) -> Option<T> {
        let text = match &self.node.content {
            Content::Text(text) => text.clone(),
            Content::Integer(value) => value.to_string(),
            Content::Float(value) => value.to_string(),
            _ => {
                self.expected(what);
                return None;
            }
        };
        read(&text).map_err(|reason| self.problem(&reason)).ok()
    }

    pub fn located<T>(&self, value: T) -> Located<T> {
        Located {
            value,
            place: self.node.place,
            path: self.path.clone(),
        }
    }

    fn below(&self, name: &str, node: &'n Node) -> Self {
        Self {
            node,
            path: child(&self.path, name),
            problems: self.problems,
        }
    }

    fn expected(&self, what: &str) {
        let given = match &self.node.content {
            Content::Text(text) => format!("the text {}", shown(text)),
            Content::Integer(value) => format!("the number {value}"),
            Content::Float(value) => format!("the number {value}"),
            Content::Boolean(value) => value.to_string(),
            _ => self.node.kind().to_owned(),
        };
        self.problem(&format!("expected {what}, not {given}"));
    }
}

/// A group of fields.
#[derive(Clone, Debug)]
pub struct Fields<'n> {
    cursor: Cursor<'n>,
    entries: &'n [Entry],
}

impl<'n> Fields<'n> {
    /// A field; `null` counts as not written.
    pub fn get(&self, name: &str) -> Option<Cursor<'n>> {
        let entry = self.entries.iter().find(|entry| entry.key == name)?;
        (entry.value.content != Content::Null).then(|| self.cursor.below(name, &entry.value))
    }

    /// A field that must be there.
    pub fn need(&self, name: &str) -> Option<Cursor<'n>> {
        let found = self.get(name);
        if found.is_none() {
            self.cursor.problem(&format!("the field {name} is missing"));
        }
        found
    }

    /// The items of a list, none where it is not written.
    pub fn items(&self, name: &str, most: usize) -> Vec<Cursor<'n>> {
        self.get(name)
            .and_then(|list| list.items(most))
            .unwrap_or_default()
    }
}

fn child(path: &str, name: &str) -> String {
    if path.is_empty() {
        return name.to_owned();
    }
    format!("{path}.{name}")
}
