//! Counts the server-sent events of a response as its chunks go by.
//!
//! Each generated token (or small group of them) is one `data:` line, so events and the times of
//! the first and the last chunk give the time per output token without parsing anything. A line
//! begins after a newline; JSON escapes the newlines of generated text, so text cannot be taken for
//! an event. Chunk borders may lie anywhere, also within `data:`.

use memchr::memchr;

const LINE: &[u8] = b"data:";

/// The events seen so far.
#[derive(Debug)]
pub struct EventCounter {
    events: u64,
    state: State,
}

#[derive(Clone, Copy, Debug)]
enum State {
    /// Within a line that is no event, or is one already counted.
    InLine,
    /// So many bytes of [`LINE`] were seen at the start of the line.
    Matching(usize),
}

impl Default for EventCounter {
    fn default() -> Self {
        Self {
            events: 0,
            state: State::Matching(0),
        }
    }
}

impl EventCounter {
    /// Takes the next chunk of the response.
    pub fn push(&mut self, chunk: &[u8]) {
        let mut rest = chunk;
        while !rest.is_empty() {
            match self.state {
                State::InLine => {
                    let Some(newline) = memchr(b'\n', rest) else {
                        return;
                    };
                    rest = rest.get(newline + 1..).unwrap_or_default();
                    self.state = State::Matching(0);
                }
                State::Matching(seen) => {
                    let expected = LINE.get(seen..).unwrap_or_default();
                    let common = rest
                        .iter()
                        .zip(expected)
                        .take_while(|(a, b)| a == b)
                        .count();
                    rest = rest.get(common..).unwrap_or_default();
                    if common == expected.len() {
                        self.events += 1;
                        self.state = State::InLine;
                    } else if rest.is_empty() {
                        self.state = State::Matching(seen + common);
                    } else {
                        self.state = State::InLine;
                    }
                }
            }
        }
    }

    /// `data:` lines so far, a closing `[DONE]` among them.
    pub fn events(&self) -> u64 {
        self.events
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn count(chunks: &[&[u8]]) -> u64 {
        let mut counter = EventCounter::default();
        for chunk in chunks {
            counter.push(chunk);
        }
        counter.events()
    }

    #[test]
    fn counts_data_lines_and_nothing_else() {
        let body = b"event: a\ndata: {\"x\":\"data: \\ndata:\"}\n\ndata:2\r\n\r\n: data:\ndat\nmydata:\n\ndata: [DONE]\n\n";
        assert_eq!(count(&[body]), 3);
        assert_eq!(count(&[b"{\"choices\":[]}"]), 0);
        assert_eq!(count(&[b"\n\ndata:"]), 1);
    }

    #[test]
    fn event_split_anywhere_is_one_event() {
        let body = b"data: 1\n\ndata: 2\n\n";
        for cut in 0..body.len() {
            let (head, tail) = body.split_at(cut);
            assert_eq!(count(&[head, tail]), 2, "cut at {cut}");
        }
    }

    proptest! {
        #[test]
        fn chunk_borders_do_not_matter(
            words in prop::collection::vec(prop::sample::select(vec!["data:", "da", "ta:", "\n", "x", "\r\n"]), 0..40),
            size in 1_usize..9,
        ) {
            let body = words.concat();
            let expected = body.split('\n').filter(|line| line.starts_with("data:")).count() as u64;
            let chunks: Vec<&[u8]> = body.as_bytes().chunks(size).collect();
            prop_assert_eq!(count(&chunks), expected);
        }
    }
}
