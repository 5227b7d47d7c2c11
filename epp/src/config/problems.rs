//! What is wrong with a configuration: all of it at once, each with its place, its path and, where
//! one is close, the name that was probably meant.

use std::cell::RefCell;
use std::fmt;

use super::yaml::{Place, SyntaxError};

/// Problems kept of one file; the rest is counted.
pub const PROBLEMS_MAX: usize = 20;

/// Characters of a path, and of a reason, that are kept.
const PATH_CHARS_MAX: usize = 200;
const REASON_CHARS_MAX: usize = 600;

/// Characters of a value that an error repeats.
const SHOWN_CHARS_MAX: usize = 80;

/// How alike two names must be to suggest one for the other, from 0 to 1.
const CLOSE: f64 = 0.7;

/// One thing that is wrong.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Problem {
    pub place: Place,
    /// Such as `schedulingProfiles[0].plugins[1].weight`; empty for the file as a whole.
    pub path: String,
    pub reason: String,
}

/// Everything that is wrong with a file, in the order of the file.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub struct ConfigErrors {
    /// What the file is called.
    pub file: String,
    /// At least one, at most [`PROBLEMS_MAX`].
    pub problems: Vec<Problem>,
    /// Problems found beyond those.
    pub more: usize,
}

impl ConfigErrors {
    /// A single problem with the file as a whole.
    pub fn whole(file: &str, reason: impl Into<String>) -> Self {
        Self {
            file: file.to_owned(),
            problems: vec![Problem {
                place: Place::START,
                path: String::new(),
                reason: reason.into(),
            }],
            more: 0,
        }
    }

    /// A text that could not be parsed at all.
    pub fn syntax(file: &str, error: &SyntaxError) -> Self {
        Self {
            file: file.to_owned(),
            problems: vec![Problem {
                place: error.place,
                path: String::new(),
                reason: shortened(&error.reason, REASON_CHARS_MAX),
            }],
            more: 0,
        }
    }
}

/// One line for each problem, `file:line:column: path: reason`.
impl fmt::Display for ConfigErrors {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (position, problem) in self.problems.iter().enumerate() {
            if position > 0 {
                writeln!(formatter)?;
            }
            let Place { line, column } = problem.place;
            write!(formatter, "{}:{line}:{column}: ", self.file)?;
            if !problem.path.is_empty() {
                write!(formatter, "{}: ", problem.path)?;
            }
            formatter.write_str(&problem.reason)?;
        }
        if self.more > 0 {
            write!(formatter, "\n{}: and {} more", self.file, self.more)?;
        }
        Ok(())
    }
}

/// Collects problems while a file is read.
#[derive(Debug, Default)]
pub struct Problems {
    found: RefCell<Found>,
}

#[derive(Debug, Default)]
struct Found {
    list: Vec<Problem>,
    more: usize,
}

impl Problems {
    pub fn add(&self, place: Place, path: &str, reason: &str) {
        let mut found = self.found.borrow_mut();
        if found.list.len() >= PROBLEMS_MAX {
            found.more += 1;
            return;
        }
        found.list.push(Problem {
            place,
            path: shortened(path, PATH_CHARS_MAX),
            reason: shortened(reason, REASON_CHARS_MAX),
        });
    }

    pub fn is_empty(&self) -> bool {
        self.found.borrow().list.is_empty()
    }

    /// The value, where nothing is wrong.
    pub fn into_result<T>(self, file: &str, value: Option<T>) -> Result<T, ConfigErrors> {
        let Found { mut list, more } = self.found.into_inner();
        match value {
            Some(value) if list.is_empty() => Ok(value),
            _ => {
                list.sort_by_key(|problem| problem.place);
                if list.is_empty() {
                    return Err(ConfigErrors::whole(file, "incomplete"));
                }
                Err(ConfigErrors {
                    file: file.to_owned(),
                    problems: list,
                    more,
                })
            }
        }
    }
}

/// A text as an error repeats it: quoted, without control characters, cut where it is long.
pub fn shown(text: &str) -> String {
    format!("{:?}", shortened(text, SHOWN_CHARS_MAX))
}

/// `; did you mean "x"?` for the known name that is nearest, nothing where none is near.
pub fn suggestion<'a>(given: &str, known: impl IntoIterator<Item = &'a str>) -> String {
    // Comparing costs the product of the lengths.
    if given.len() > SHOWN_CHARS_MAX {
        return String::new();
    }
    let nearest = known
        .into_iter()
        .filter(|name| name.len() <= SHOWN_CHARS_MAX)
        .map(|name| (strsim::normalized_damerau_levenshtein(given, name), name))
        .filter(|(likeness, name)| *likeness >= CLOSE || given.eq_ignore_ascii_case(name))
        .max_by(|a, b| a.0.total_cmp(&b.0));
    match nearest {
        Some((_, name)) => format!("; did you mean {name:?}?"),
        None => String::new(),
    }
}

/// A warning, cut where it is long.
pub(super) fn shortened_warning(warning: &str) -> String {
    shortened(warning, REASON_CHARS_MAX)
}

fn shortened(text: &str, chars: usize) -> String {
    match text.char_indices().nth(chars) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nearest_name_is_suggested_only_when_close() {
        let known = ["queue-scorer", "max-score-picker"];
        assert_eq!(
            suggestion("queue-scorre", known),
            "; did you mean \"queue-scorer\"?"
        );
        assert_eq!(
            suggestion("Queue-Scorer", known),
            "; did you mean \"queue-scorer\"?"
        );
        assert_eq!(suggestion("banana", known), "");
    }

    #[test]
    fn problems_are_in_the_order_of_the_file_and_bounded() {
        let problems = Problems::default();
        for line in (1..=30).rev() {
            problems.add(Place { line, column: 2 }, "a.b", &"x".repeat(10_000));
        }
        let errors = problems.into_result("f.yaml", Some(())).unwrap_err();
        assert_eq!((errors.problems.len(), errors.more), (PROBLEMS_MAX, 10));
        let text = errors.to_string();
        assert!(text.starts_with("f.yaml:11:2: a.b: xxx"), "{text}");
        assert!(text.ends_with("f.yaml: and 10 more"), "{text}");
        assert!(text.len() < 20_000);
    }
}
