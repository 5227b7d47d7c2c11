//! The parts of a template that are alternatives, and what a test adds to one.
//!
//! A part stands between `# {{only NAME…}}` and `# {{end}}` and is kept where all its names are chosen. A part whose
//! every line is a comment is one that is off in the file as it stands: keeping it takes one comment sign off each
//! line. So a file read or run by hand is one whole configuration, and the other one is there without a second file
//! that repeats the rest of it. There is no nesting and no other syntax.

use thiserror::Error;

/// How epp learns of a response.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Watch {
    /// Envoy reports each response once it has ended. epp's streams are closed by then.
    #[default]
    AccessLog,
    /// Each chunk passes epp.
    Stream,
}

/// Which filter of Envoy counts the tokens of a response that passes without epp.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum UsageFilter {
    /// `sse_to_metadata`: streamed answers only, event by event.
    #[default]
    SseToMetadata,
    /// `ai_protocol_manager`: whole answers as well, from Envoy 1.40 on.
    AiProtocolManager,
}

/// Which parts of a template are kept.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Parts {
    pub watch: Watch,
    pub usage: UsageFilter,
    /// epp serves TLS with a certificate of its own making.
    pub tls: bool,
}

/// An HTTP filter that a test adds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExtraFilter {
    pub place: FilterPlace,
    /// One item of `http_filters`, as JSON, which is YAML.
    pub filter: serde_json::Value,
}

/// Where among the filters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FilterPlace {
    BeforePick,
    AfterPick,
}

#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub(crate) enum PartError {
    #[error("line {line}: no part has the name {name:?}")]
    Unknown { name: String, line: usize },
    #[error("line {line}: a part begins within a part")]
    Nested { line: usize },
    #[error("line {line}: an end without a beginning")]
    Stray { line: usize },
    #[error("line {line}: a part without an end")]
    Unclosed { line: usize },
    #[error("there is no line {anchor:?} to put a filter before")]
    NoAnchor { anchor: &'static str },
}

const BEGIN: &str = "# {{only ";
const END: &str = "# {{end}}";
const PICK: &str = "- name: envoy.filters.http.ext_proc";
const ROUTER: &str = "- name: envoy.filters.http.router";

impl Parts {
    /// Whether the part of this name is kept; `None` for a name that there is not.
    fn has(self, name: &str) -> Option<bool> {
        let access_log = self.watch == Watch::AccessLog;
        match name {
            "access-log" => Some(access_log),
            "stream" => Some(!access_log),
            "sse-usage" => Some(access_log && self.usage == UsageFilter::SseToMetadata),
            "ai-usage" => Some(access_log && self.usage == UsageFilter::AiProtocolManager),
            "tls" => Some(self.tls),
            _ => None,
        }
    }
}

/// The template with the parts that are chosen, and without the marks.
pub(crate) fn keep_parts(template: &str, parts: Parts) -> Result<String, PartError> {
    let mut out = String::with_capacity(template.len());
    let mut open: Option<Part<'_>> = None;
    for (index, text) in template.split_inclusive('\n').enumerate() {
        let line = index + 1;
        let mark = text.trim();
        if let Some(names) = mark
            .strip_prefix(BEGIN)
            .and_then(|rest| rest.strip_suffix("}}"))
        {
            if open.is_some() {
                return Err(PartError::Nested { line });
            }
            open = Some(Part {
                line,
                kept: all_chosen(names, parts, line)?,
                lines: Vec::new(),
            });
        } else if mark == END {
            let part = open.take().ok_or(PartError::Stray { line })?;
            if part.kept {
                part.write(&mut out);
            }
        } else if let Some(part) = &mut open {
            part.lines.push(text);
        } else {
            out.push_str(text);
        }
    }
    match open {
        Some(part) => Err(PartError::Unclosed { line: part.line }),
        None => Ok(out),
    }
}

fn all_chosen(names: &str, parts: Parts, line: usize) -> Result<bool, PartError> {
    let mut all = true;
    for name in names.split_whitespace() {
        let known = parts.has(name).ok_or_else(|| PartError::Unknown {
            name: name.to_owned(),
            line,
        })?;
        all &= known;
    }
    Ok(all)
}

#[derive(Debug)]
struct Part<'a> {
    line: usize,
    kept: bool,
    lines: Vec<&'a str>,
}

impl Part<'_> {
    fn write(&self, out: &mut String) {
        let off = self
            .lines
            .iter()
            .all(|line| line.trim_start().starts_with('#'));
        for line in &self.lines {
            match line.split_once('#') {
                Some((indentation, rest)) if off => {
                    out.push_str(indentation);
                    out.push_str(rest.strip_prefix(' ').unwrap_or(rest));
                }
                _ => out.push_str(line),
            }
        }
    }
}

/// Puts each filter before the one that its place names, in the order given.
pub(crate) fn add_filters(
    mut configuration: String,
    filters: &[ExtraFilter],
) -> Result<String, PartError> {
    for extra in filters {
        let anchor = match extra.place {
            FilterPlace::BeforePick => PICK,
            FilterPlace::AfterPick => ROUTER,
        };
        let found = configuration
            .find(anchor)
            .ok_or(PartError::NoAnchor { anchor })?;
        let line_start = configuration[..found].rfind('\n').map_or(0, |end| end + 1);
        let indentation = configuration[line_start..found].to_owned();
        let item = format!("{indentation}- {}\n", extra.filter);
        configuration.insert_str(line_start, &item);
    }
    Ok(configuration)
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEMPLATE: &str = concat!(
        "a: 1\n",
        "  # {{only access-log}}\n",
        "  # Why it is so.\n",
        "  b: 2\n",
        "  # {{end}}\n",
        "  # {{only stream}}\n",
        "  # # Why else.\n",
        "  # b: 3   # a remark\n",
        "  #   c: 4\n",
        "  # {{end}}\n",
        "  # {{only access-log tls}}\n",
        "  # d: 5\n",
        "  # {{end}}\n",
        "e: 6\n",
    );

    fn kept(watch: Watch, tls: bool) -> String {
        let parts = Parts {
            watch,
            tls,
            ..Parts::default()
        };
        keep_parts(TEMPLATE, parts).unwrap()
    }

    #[test]
    fn a_part_that_is_on_stays_as_it_is() {
        let expected = "a: 1\n  # Why it is so.\n  b: 2\ne: 6\n";
        assert_eq!(kept(Watch::AccessLog, false), expected);
    }

    #[test]
    fn a_part_that_is_off_loses_one_comment_sign_a_line() {
        let expected = "a: 1\n  # Why else.\n  b: 3   # a remark\n    c: 4\ne: 6\n";
        assert_eq!(kept(Watch::Stream, false), expected);
    }

    #[test]
    fn a_part_of_two_names_needs_both() {
        assert!(kept(Watch::AccessLog, true).contains("\n  d: 5\n"));
        assert!(!kept(Watch::Stream, true).contains("d: 5"));
    }

    #[test]
    fn marks_that_do_not_fit_are_errors() {
        let error = |template: &str| keep_parts(template, Parts::default()).unwrap_err();
        let name = "acces-log".to_owned();
        let unknown = "x\n# {{only acces-log}}\n# {{end}}\n";
        assert_eq!(error(unknown), PartError::Unknown { name, line: 2 });
        let nested = "# {{only tls}}\n# {{only tls}}\n";
        assert_eq!(error(nested), PartError::Nested { line: 2 });
        assert_eq!(error("# {{end}}\n"), PartError::Stray { line: 1 });
        let unclosed = "\n# {{only tls}}\nx\n";
        assert_eq!(error(unclosed), PartError::Unclosed { line: 2 });
    }

    #[test]
    fn filters_stand_before_what_their_place_names() {
        let chain = format!("f:\n  {PICK}\n    x: 1\n  {ROUTER}\n");
        let extra = |place, name: &str| ExtraFilter {
            place,
            filter: serde_json::json!({"name": name}),
        };
        let filters = [
            extra(FilterPlace::AfterPick, "limit"),
            extra(FilterPlace::BeforePick, "hint"),
        ];
        let expected = format!(
            "f:\n  - {{\"name\":\"hint\"}}\n  {PICK}\n    x: 1\n  - {{\"name\":\"limit\"}}\n  {ROUTER}\n"
        );
        assert_eq!(add_filters(chain, &filters).unwrap(), expected);
        let error = add_filters("f: []\n".to_owned(), &filters).unwrap_err();
        assert_eq!(error, PartError::NoAnchor { anchor: ROUTER });
    }
}
