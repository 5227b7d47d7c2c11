//! How often an endpoint may be written about. Pure: time in, permission out.
//!
//! Whatever a publisher does, it can do a thousand times a second. Each kind of thing is logged at
//! most once a minute per endpoint, with the count of what went unsaid.

/// Least time between two lines of one kind about one endpoint.
pub(super) const INTERVAL_MS: u64 = 60_000;

/// What is written about.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Notice {
    Connected,
    Disconnected,
    Unreachable,
    NoSources,
    Gap,
    Cleared,
    ReplayFailed,
    Malformed,
    Skipped,
    Rank,
}

const KINDS: usize = Notice::Rank as usize + 1;

/// What was written about one endpoint.
#[derive(Clone, Default, Debug)]
pub(super) struct Notices {
    kinds: [Kind; KINDS],
}

#[derive(Clone, Copy, Default, Debug)]
struct Kind {
    said_at_ms: Option<u64>,
    unsaid: u64,
}

impl Notices {
    /// Whether to write a line now: how many times it happened since the last line, this one
    /// included; none where it has to go unsaid.
    pub(super) fn due(&mut self, notice: Notice, now_ms: u64) -> Option<u64> {
        let kind = &mut self.kinds[notice as usize];
        kind.unsaid += 1;
        let is_due = kind
            .said_at_ms
            .is_none_or(|said| now_ms.saturating_sub(said) >= INTERVAL_MS);
        if !is_due {
            return None;
        }
        kind.said_at_ms = Some(now_ms);
        Some(std::mem::take(&mut kind.unsaid))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kind_is_written_about_once_a_minute_with_its_count() {
        let mut notices = Notices::default();
        assert_eq!(notices.due(Notice::Gap, 5), Some(1));
        for now_ms in 6..10 {
            assert_eq!(notices.due(Notice::Gap, now_ms), None);
        }
        assert_eq!(notices.due(Notice::Rank, 9), Some(1));
        assert_eq!(notices.due(Notice::Gap, INTERVAL_MS + 4), None);
        assert_eq!(notices.due(Notice::Gap, INTERVAL_MS + 5), Some(6));
        assert_eq!(notices.due(Notice::Gap, INTERVAL_MS + 6), None);
    }
}
