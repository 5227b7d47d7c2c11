//! Fills the placeholders of a template: `{{name}}` → value. Strict in both directions.
//!
//! An unknown name, a value that no placeholder uses, and an opening without its close are errors: a template and
//! the code that fills it cannot drift apart unnoticed. A value of several lines is allowed only for a placeholder
//! that stands alone on its line; each further line gets that line's indentation. There is no other syntax.

use thiserror::Error;

#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub(crate) enum RenderError {
    #[error("line {line}: no value for the placeholder {name:?}")]
    Unknown { name: String, line: usize },
    #[error("no placeholder uses the value {name:?}")]
    Unused { name: String },
    #[error("line {line}: `{{{{` without `}}}}`")]
    Unclosed { line: usize },
    #[error("line {line}: the value of {name:?} has several lines, and text stands beside it")]
    Inline { name: String, line: usize },
}

/// `template` with each placeholder replaced by the value of its name. A name may occur more than once.
pub(crate) fn render(template: &str, values: &[(&str, String)]) -> Result<String, RenderError> {
    let mut used = vec![false; values.len()];
    let mut out = String::with_capacity(template.len());
    for (index, line) in template.split_inclusive('\n').enumerate() {
        render_line(line, index + 1, values, &mut used, &mut out)?;
    }
    match used.iter().position(|used| !used) {
        Some(index) => Err(RenderError::Unused {
            name: values[index].0.to_owned(),
        }),
        None => Ok(out),
    }
}

fn render_line(
    text: &str,
    line: usize,
    values: &[(&str, String)],
    used: &mut [bool],
    out: &mut String,
) -> Result<(), RenderError> {
    let indentation = &text[..text.len() - text.trim_start().len()];
    let mut rest = text;
    while let Some((before, after)) = rest.split_once("{{") {
        let (name, after) = after
            .split_once("}}")
            .ok_or(RenderError::Unclosed { line })?;
        let known = values.iter().position(|(known, _)| *known == name);
        let index = known.ok_or_else(|| RenderError::Unknown {
            name: name.to_owned(),
            line,
        })?;
        used[index] = true;
        let value = &values[index].1;
        let alone = before.trim().is_empty() && after.trim().is_empty() && rest.len() == text.len();
        if value.contains('\n') && !alone {
            return Err(RenderError::Inline {
                name: name.to_owned(),
                line,
            });
        }
        out.push_str(before);
        out.push_str(&value.replace('\n', &format!("\n{indentation}")));
        rest = after;
    }
    out.push_str(rest);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn values(pairs: &[(&'static str, &str)]) -> Vec<(&'static str, String)> {
        pairs
            .iter()
            .map(|(name, value)| (*name, (*value).to_owned()))
            .collect()
    }

    #[test]
    fn fills_placeholders_beside_yaml_braces() {
        let values = values(&[("host", "::1"), ("port", "80")]);
        let rendered = render(
            "a: {b: {c: \"{{host}}\", d: {{port}}}}\ne: {{port}}\n",
            &values,
        );
        assert_eq!(rendered.unwrap(), "a: {b: {c: \"::1\", d: 80}}\ne: 80\n");
    }

    #[test]
    fn further_lines_keep_the_indentation() {
        let rendered = render(
            "list:\n  {{items}}\nend\n",
            &values(&[("items", "- a\n- b")]),
        );
        assert_eq!(rendered.unwrap(), "list:\n  - a\n  - b\nend\n");
    }

    #[test]
    fn an_unknown_placeholder_is_an_error() {
        let error = render("x\na: {{port}}\n", &[]).unwrap_err();
        assert_eq!(
            error,
            RenderError::Unknown {
                name: "port".to_owned(),
                line: 2
            }
        );
        assert_eq!(
            error.to_string(),
            "line 2: no value for the placeholder \"port\""
        );
    }

    #[test]
    fn an_unused_value_is_an_error() {
        let error = render("a: 1\n", &values(&[("port", "80")])).unwrap_err();
        assert_eq!(
            error,
            RenderError::Unused {
                name: "port".to_owned()
            }
        );
    }

    #[test]
    fn an_unclosed_placeholder_is_an_error() {
        let error = render("a: {{port\n}}", &values(&[("port", "80")])).unwrap_err();
        assert_eq!(error, RenderError::Unclosed { line: 1 });
    }

    #[test]
    fn several_lines_within_a_line_are_an_error() {
        for template in ["a: {{port}}", "{{port}} b", "{{port}}{{port}}"] {
            let error = render(template, &values(&[("port", "1\n2")])).unwrap_err();
            assert_eq!(
                error,
                RenderError::Inline {
                    name: "port".to_owned(),
                    line: 1
                }
            );
        }
    }
}
