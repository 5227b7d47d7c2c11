//! Envoy's access log, as the templates write it: one JSON object a line.
//!
//! It is the best witness of what a gateway did: what epp picked, what served, how often it was tried and who wrote
//! the answer.

use std::path::Path;

use anyhow::{Context, Result};
use serde::Deserialize;

/// One request. Fields that a template does not write are `None`.
#[derive(Clone, Debug, PartialEq, Deserialize)]
pub struct AccessLogEntry {
    pub request_id: Option<String>,
    pub method: Option<String>,
    pub path: Option<String>,
    /// The status sent to the client; 0 where the client left before one.
    pub code: u16,
    /// Who answered: `via_upstream`, or the filter and its reason.
    pub details: Option<String>,
    /// Envoy's response flags, such as `UF` (upstream connection failure) or `DC` (client left); `-` for none.
    pub flags: Option<String>,
    /// What epp asked for: `ip:port[,ip:port…]`.
    pub picked: Option<String>,
    /// Which endpoint served.
    pub served: Option<String>,
    pub upstream_host: Option<String>,
    /// How many workers were tried; 0 where Envoy answered by itself.
    pub attempts: Option<u32>,
    pub duration_ms: Option<u64>,
    pub first_byte_ms: Option<u64>,
    pub request_bytes: u64,
    pub response_bytes: u64,
    /// Times and gRPC statuses of the calls to epp.
    pub ext_proc: Option<String>,
}

/// All complete lines of the file; empty while there is no file.
pub(crate) fn read(path: &Path) -> Result<Vec<AccessLogEntry>> {
    match std::fs::read_to_string(path) {
        Ok(text) => parse(&text).with_context(|| format!("{}", path.display())),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(error).with_context(|| format!("{}", path.display())),
    }
}

/// A last line without its end is still being written, and left for the next time.
fn parse(text: &str) -> Result<Vec<AccessLogEntry>> {
    let complete = text.rfind('\n').map_or("", |end| &text[..end]);
    let line = |line: &str| serde_json::from_str(line).with_context(|| format!("line {line}"));
    complete.lines().map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_complete_lines_only() {
        let line = r#"{"start":"2026-01-01T00:00:00.000Z","code":200,"details":"via_upstream","flags":"-","picked":"10.0.0.1:8000,10.0.0.2:8000","served":"10.0.0.2:8000","attempts":2,"duration_ms":7,"request_bytes":10,"response_bytes":20,"ext_proc":null}"#;
        let entries = parse(&format!("{line}\n{line}\n{{\"code\":20")).unwrap();
        assert_eq!(entries.len(), 2);
        assert_eq!(entries[0].served.as_deref(), Some("10.0.0.2:8000"));
        assert_eq!((entries[0].code, entries[0].attempts), (200, Some(2)));
    }

    #[test]
    fn a_broken_line_is_named() {
        assert!(format!("{:#}", parse("{}\n").unwrap_err()).contains("line {}"));
    }
}
