//! Server-sent events, as far as OpenAI streams need them: bytes in, the `data` of each event out.
//!
//! By the HTML standard's "event stream interpretation": lines end in LF, CRLF or CR; `data` lines of one event are
//! joined by LF; an empty line ends the event; comments (a leading colon) and other fields are passed over; what
//! follows the last empty line is no event. A byte-order mark at the start is not looked for.

use thiserror::Error;

/// An event longer than this is refused: no chunk of a chat is that long.
pub const EVENT_BYTES_MAX: usize = 1 << 20;

/// The stream sent an event that is longer than it may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("an event is longer than {EVENT_BYTES_MAX} bytes")]
pub struct EventTooLong;

/// Cuts a byte stream into events, however the transport has split it.
#[derive(Debug, Default)]
pub struct EventParser {
    line: Vec<u8>,
    data: Option<Vec<u8>>,
    after_carriage_return: bool,
}

impl EventParser {
    /// Takes the next piece of the stream and hands each event that it completes to `event`.
    pub fn push(
        &mut self,
        piece: &[u8],
        mut event: impl FnMut(String),
    ) -> Result<(), EventTooLong> {
        for &byte in piece {
            let second_half = byte == b'\n' && self.after_carriage_return;
            self.after_carriage_return = byte == b'\r';
            if second_half {
                continue;
            }
            if byte != b'\n' && byte != b'\r' {
                self.line.push(byte);
            } else if let Some(data) = self.end_line() {
                event(String::from_utf8_lossy(&data).into_owned());
            }
            if self.line.len() + self.data.as_ref().map_or(0, Vec::len) > EVENT_BYTES_MAX {
                return Err(EventTooLong);
            }
        }
        Ok(())
    }

    fn end_line(&mut self) -> Option<Vec<u8>> {
        let line = std::mem::take(&mut self.line);
        if line.is_empty() {
            return self.data.take();
        }
        if let Some(value) = data_field(&line) {
            match &mut self.data {
                Some(data) => {
                    data.push(b'\n');
                    data.extend_from_slice(value);
                }
                None => self.data = Some(value.to_vec()),
            }
        }
        None
    }
}

/// The value of a `data` line, without the one space that may follow the colon.
fn data_field(line: &[u8]) -> Option<&[u8]> {
    let value = line.strip_prefix(b"data")?;
    if value.is_empty() {
        return Some(value);
    }
    let value = value.strip_prefix(b":")?;
    Some(value.strip_prefix(b" ").unwrap_or(value))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn events(pieces: &[&[u8]]) -> Vec<String> {
        let mut parser = EventParser::default();
        let mut found = Vec::new();
        for piece in pieces {
            parser.push(piece, |event| found.push(event)).unwrap();
        }
        found
    }

    #[test]
    fn reads_events_with_each_kind_of_line_end() {
        assert_eq!(
            events(&[b"data: a\n\ndata: b\r\n\r\ndata:c\r\r"]),
            ["a", "b", "c"]
        );
    }

    #[test]
    fn joins_data_lines_and_passes_over_comments_and_other_fields() {
        let stream = b": keep-alive\n\nevent: x\ndata: a\nid: 1\ndata:  b\ndatax: no\ndata\n\n";
        assert_eq!(events(&[stream]), ["a\n b\n"]);
    }

    #[test]
    fn an_event_without_its_empty_line_is_none() {
        assert!(events(&[b"data: a\n"]).is_empty());
    }

    #[test]
    fn a_line_end_split_between_two_pieces_is_one_line_end() {
        assert_eq!(
            events(&[b"data: a\r", b"\ndata: b\r", b"\n\r", b"\n"]),
            ["a\nb"]
        );
    }

    #[test]
    fn an_endless_event_is_refused() {
        let mut parser = EventParser::default();
        let line = [b"data: ".as_slice(), &[b'x'; 1000], b"\n"].concat();
        let refused = (0..2000).any(|_| parser.push(&line, |_| ()).is_err());
        assert!(refused);
    }

    proptest! {
        #[test]
        fn any_split_gives_the_same_events(
            datas in prop::collection::vec("[ -~äß€\u{1F600}]{0,12}(\n[ -~]{0,8})?", 0..6),
            line_end in prop::sample::select(vec!["\n", "\r\n", "\r"]),
            cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..10),
        ) {
            let event = |data: &String| {
                let lines = data.split('\n').map(|line| format!("data: {line}{line_end}"));
                lines.chain([line_end.to_owned()]).collect::<String>()
            };
            let stream: String = datas.iter().map(event).collect();
            let mut at: Vec<usize> = cuts.iter().map(|cut| cut.index(stream.len() + 1)).collect();
            at.extend([0, stream.len()]);
            at.sort_unstable();
            let pieces: Vec<&[u8]> =
                at.windows(2).map(|pair| &stream.as_bytes()[pair[0]..pair[1]]).collect();
            prop_assert_eq!(events(&pieces), datas);
        }
    }
}
