//! The lines of a file, packed or not, none of them longer than a bound.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::path::Path;

use super::TraceError;

/// The longest line. A prompt of a million tokens in blocks of 16, each id of eight digits, needs 600 KB.
pub(super) const LINE_BYTES_MAX: usize = 4 << 20;

/// Lines with their numbers, from 1.
pub(super) struct Lines<'a> {
    path: &'a Path,
    from: Box<dyn BufRead>,
    number: usize,
    line: Vec<u8>,
}

impl<'a> Lines<'a> {
    pub(super) fn open(path: &'a Path) -> Result<Self, TraceError> {
        let from = open(path).map_err(|source| TraceError::Unreadable {
            path: path.to_path_buf(),
            source,
        })?;
        Ok(Self {
            path,
            from,
            number: 0,
            line: Vec::new(),
        })
    }

    /// The next line that is not empty, without its end.
    pub(super) fn next_line(&mut self) -> Result<Option<(usize, &str)>, TraceError> {
        let path = || self.path.to_path_buf();
        loop {
            self.line.clear();
            let mut limited = self.from.by_ref().take(LINE_BYTES_MAX as u64 + 1);
            let read = limited.read_until(b'\n', &mut self.line);
            let read = read.map_err(|source| TraceError::Unreadable {
                path: path(),
                source,
            })?;
            if read == 0 {
                return Ok(None);
            }
            self.number += 1;
            let bad = |problem: String| TraceError::BadLine {
                path: path(),
                line: self.number,
                problem,
            };
            if read > LINE_BYTES_MAX {
                return Err(bad(format!("longer than {LINE_BYTES_MAX} bytes")));
            }
            if self.line.trim_ascii().is_empty() {
                continue;
            }
            let text = std::str::from_utf8(&self.line);
            let text = text.map_err(|error| bad(format!("not UTF-8: {error}")))?;
            return Ok(Some((self.number, text.trim())));
        }
    }
}

fn open(path: &Path) -> io::Result<Box<dyn BufRead>> {
    let file = File::open(path)?;
    if path.extension().is_none_or(|end| end != "zst") {
        return Ok(Box::new(BufReader::new(file)));
    }
    let decoder = ruzstd::decoding::StreamingDecoder::new(BufReader::new(file));
    let decoder =
        decoder.map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error.to_string()))?;
    Ok(Box::new(BufReader::new(decoder)))
}
