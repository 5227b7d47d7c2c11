//! Workloads from recorded traffic: lines → checked requests → a [`Workload`].
//!
//! Two formats are read. [Mooncake's](self::mooncake) names the prefix blocks of each prompt, so its sharing is the
//! recorded one. [Azure's](self::azure) has only times and lengths, so its prompts share nothing. A file that ends in
//! `.zst` is unpacked on the way. A line that is none of the format is an error with its number: a trace that is read
//! in part would measure something else than it says.

pub mod azure;
mod lines;
pub mod mooncake;

use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use thiserror::Error;

use super::{PlannedRequest, Workload};

/// The most requests that are kept of one trace.
pub const REQUESTS_MAX: usize = 1_000_000;

/// What of a trace is taken, and how its blocks are read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TraceOptions {
    /// What is left out at the beginning. Times count from what follows it.
    pub skip: Option<Extent>,
    /// What is taken from there on; without it all.
    pub limit: Option<Extent>,
    /// Tokens of a prefix block; without it Mooncake's 512.
    pub block_tokens: Option<u32>,
}

/// So many requests, or so much time: `500`, `60s`, `1.5s`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Extent {
    Requests(usize),
    Time(Duration),
}

/// A text that says neither how many requests nor how much time.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("`{0}` is neither a number of requests (500) nor a time in seconds (60s)")]
pub struct BadExtent(String);

impl FromStr for Extent {
    type Err = BadExtent;

    fn from_str(text: &str) -> Result<Self, BadExtent> {
        let bad = || BadExtent(text.to_owned());
        match text.strip_suffix('s') {
            Some(seconds) => {
                let seconds = seconds.parse().map_err(|_| bad())?;
                let time = Duration::try_from_secs_f64(seconds).map_err(|_| bad())?;
                Ok(Self::Time(time))
            }
            None => Ok(Self::Requests(text.parse().map_err(|_| bad())?)),
        }
    }
}

/// A trace that cannot be used, and where in it that shows.
#[derive(Debug, Error)]
pub enum TraceError {
    #[error("cannot read {}", path.display())]
    Unreadable {
        path: PathBuf,
        source: std::io::Error,
    },
    #[error("{}:{line}: {problem}", path.display())]
    BadLine {
        path: PathBuf,
        line: usize,
        problem: String,
    },
    #[error("{} holds more than {REQUESTS_MAX} requests; a limit takes fewer", path.display())]
    TooLong { path: PathBuf },
    #[error("{} holds no request in what was asked for", path.display())]
    Empty { path: PathBuf },
}

/// Reads `path` in the format that its name says: `.csv` is Azure's, all others Mooncake's.
pub fn read(path: &Path, options: TraceOptions) -> Result<Workload, TraceError> {
    let name = path.to_string_lossy();
    let plain = name.strip_suffix(".zst").unwrap_or(&name);
    let is_csv = Path::new(plain).extension().is_some_and(|end| end == "csv");
    if is_csv {
        azure::read(path, options)
    } else {
        mooncake::read(path, options)
    }
}

/// Takes requests in the order of their times: those within the asked extents, times counted from the first taken.
struct Taker<'a> {
    path: &'a Path,
    options: TraceOptions,
    seen: usize,
    last: Duration,
    /// The time that counts as 0.
    start: Option<Duration>,
    requests: Vec<PlannedRequest>,
}

impl<'a> Taker<'a> {
    fn new(path: &'a Path, options: TraceOptions) -> Self {
        Self {
            path,
            options,
            seen: 0,
            last: Duration::ZERO,
            start: None,
            requests: Vec::new(),
        }
    }

    /// Takes or leaves one request. False once no later one is wanted.
    fn offer(&mut self, line: usize, mut request: PlannedRequest) -> Result<bool, TraceError> {
        if request.at < self.last {
            let problem = format!(
                "its time {:?} is before the last one's {:?}",
                request.at, self.last
            );
            return Err(self.bad(line, problem));
        }
        self.last = request.at;
        self.seen += 1;
        let skipped = match self.options.skip {
            None => false,
            Some(Extent::Requests(count)) => self.seen <= count,
            Some(Extent::Time(time)) => request.at < time,
        };
        if skipped {
            return Ok(true);
        }
        let start = *self.start.get_or_insert(match self.options.skip {
            Some(Extent::Time(time)) => time,
            _ => request.at,
        });
        request.at = request.at.saturating_sub(start);
        let wanted = match self.options.limit {
            None => true,
            Some(Extent::Requests(count)) => self.requests.len() < count,
            Some(Extent::Time(time)) => request.at < time,
        };
        if wanted {
            if self.requests.len() == REQUESTS_MAX {
                let path = self.path.to_path_buf();
                return Err(TraceError::TooLong { path });
            }
            self.requests.push(request);
        }
        Ok(wanted)
    }

    fn bad(&self, line: usize, problem: impl Into<String>) -> TraceError {
        TraceError::BadLine {
            path: self.path.to_path_buf(),
            line,
            problem: problem.into(),
        }
    }

    fn finish(self) -> Result<Workload, TraceError> {
        if self.requests.is_empty() {
            let path = self.path.to_path_buf();
            return Err(TraceError::Empty { path });
        }
        let name = self.path.file_name().unwrap_or(self.path.as_os_str());
        Ok(Workload {
            name: name.to_string_lossy().into_owned(),
            requests: self.requests,
        })
    }
}

#[cfg(test)]
mod tests;
