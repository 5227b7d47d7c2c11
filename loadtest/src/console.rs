//! What the subcommands print on standard output: one numbered line a part, then text and tables.

use std::fmt::Write as _;
use std::io::Write;
use std::process::ExitCode;
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use crate::stack::Progress;

/// Numbers the parts and times them.
#[derive(Debug)]
pub(crate) struct Console {
    steps: usize,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    step: usize,
    began: Instant,
    /// The part's line has no end yet.
    open: bool,
}

impl Console {
    pub(crate) fn new(steps: usize) -> Self {
        let state = State {
            step: 0,
            began: Instant::now(),
            open: false,
        };
        Self {
            steps,
            state: Mutex::new(state),
        }
    }

    /// Like [`Progress::begin`], for a part that prints lines of its own.
    pub(crate) fn begin_block(&self, part: &str) {
        self.start(part, false);
    }

    /// The end of a command that failed: its error for people, unless they want nothing but JSON, and as the last line's object.
    pub(crate) fn no_result(&self, error: &anyhow::Error, json: bool) -> ExitCode {
        let error = format!("{error:#}");
        if !json {
            self.line(&format!("\nno result: {error}"));
        }
        self.line(&serde_json::json!({ "error": error }).to_string());
        ExitCode::FAILURE
    }

    /// Prints a line of its own.
    pub(crate) fn line(&self, text: &str) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let before = if std::mem::take(&mut state.open) {
            "\n"
        } else {
            ""
        };
        print(&format!("{before}{text}\n"));
    }

    fn start(&self, part: &str, open: bool) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.step += 1;
        state.began = Instant::now();
        state.open = open;
        let end = if open { "" } else { "\n" };
        print(&format!("[{}/{}] {part} …{end}", state.step, self.steps));
    }
}

impl Progress for Console {
    fn begin(&self, part: &str) {
        self.start(part, true);
    }

    fn ready(&self) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let indent = if std::mem::take(&mut state.open) {
            " "
        } else {
            "      "
        };
        print(&format!(
            "{indent}ready in {:.1} s\n",
            state.began.elapsed().as_secs_f64()
        ));
    }
}

/// A reader that has gone (`cargo demo | head`) must not stop the program from cleaning up.
fn print(text: &str) {
    let mut out = std::io::stdout().lock();
    let _printed = out.write_all(text.as_bytes()).and_then(|()| out.flush());
}

/// Rows as lines: the first column to the left, the others to the right, each as wide as it must be.
pub(crate) fn aligned(rows: &[Vec<String>]) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let cell =
        |row: &[String], column: usize| row.get(column).map_or(0, |cell| cell.chars().count());
    let widths: Vec<usize> = (0..columns)
        .map(|column| rows.iter().map(|row| cell(row, column)).max().unwrap_or(0))
        .collect();
    let mut text = String::new();
    for row in rows {
        for (column, (cell, width)) in row.iter().zip(&widths).enumerate() {
            let _written = if column == 0 {
                write!(text, "{cell:width$}")
            } else {
                write!(text, "  {cell:>width$}")
            };
        }
        text.push('\n');
    }
    text
}

/// A value as text, or a dash.
pub(crate) fn shown(value: Option<f64>, digits: usize) -> String {
    value.map_or_else(|| "–".to_owned(), |value| format!("{value:.digits$}"))
}
