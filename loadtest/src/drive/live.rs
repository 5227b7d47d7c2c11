//! Standard error: the line that tells how a run goes, rewritten each second, on a terminal only; and warnings.

use std::io::{IsTerminal, Write};
use std::time::Duration;

use super::tally::Tally;

/// Rates since the last line.
#[derive(Debug)]
pub(crate) struct Live {
    is_shown: bool,
    last: Duration,
    sent: usize,
    ended: usize,
    tokens: u64,
}

impl Live {
    /// Shows nothing where `wanted` is false or standard error is no terminal.
    pub(crate) fn new(wanted: bool) -> Self {
        Self {
            is_shown: wanted && std::io::stderr().is_terminal(),
            last: Duration::ZERO,
            sent: 0,
            ended: 0,
            tokens: 0,
        }
    }

    pub(super) fn show(&mut self, now: Duration, in_flight: usize, tally: &Tally) {
        if self.is_shown {
            let line = self.line(now, in_flight, tally);
            write(&format!("\r\x1b[K{line}"));
        }
    }

    /// Takes the line away and begins anew.
    pub(super) fn clear(&mut self) {
        if self.is_shown {
            write("\r\x1b[K");
        }
        *self = Self {
            is_shown: self.is_shown,
            ..Self::new(false)
        };
    }

    fn line(&mut self, now: Duration, in_flight: usize, tally: &Tally) -> String {
        let seconds = now.saturating_sub(self.last).as_secs_f64().max(1e-3);
        let ended = tally.records.len();
        let rate = |now: usize, before: usize| now.saturating_sub(before) as f64 / seconds;
        let tokens = tally.answer_tokens.saturating_sub(self.tokens) as f64 / seconds;
        let line = format!(
            "{:4} s  sent {} ({:.1}/s)  ended {ended} ({:.1}/s)  in flight {in_flight}  failed {}  {tokens:.0} tokens/s",
            now.as_secs(),
            tally.sent,
            rate(tally.sent, self.sent),
            rate(ended, self.ended),
            tally.failed,
        );
        (self.last, self.sent, self.ended, self.tokens) =
            (now, tally.sent, ended, tally.answer_tokens);
        line
    }
}

/// A line that stays, whoever reads it.
pub(super) fn warn(line: &str) {
    write(&format!("{line}\n"));
}

/// A terminal that has gone must not stop a run.
fn write(text: &str) {
    let mut out = std::io::stderr().lock();
    let _shown = out.write_all(text.as_bytes()).and_then(|()| out.flush());
}

#[cfg(test)]
mod tests {
    use super::super::record::Record;
    use super::*;

    #[test]
    fn rates_are_those_since_the_last_line() {
        let (mut live, mut tally) = (Live::new(false), Tally::new());
        tally.sent = 10;
        live.line(Duration::from_secs(1), 4, &tally);
        tally.sent = 16;
        tally.take(Record {
            answer_tokens: 100,
            ..Record::default()
        });
        let line = live.line(Duration::from_secs(3), 5, &tally);
        assert_eq!(
            line,
            "   3 s  sent 16 (3.0/s)  ended 1 (0.5/s)  in flight 5  failed 0  50 tokens/s"
        );
    }
}
