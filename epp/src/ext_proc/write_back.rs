//! Writes the client's model name back into a response whose request was rewritten.
//!
//! The worker names the model it served; the client asked for another name and compares. Every
//! `"model":"<served>"` member, with or without blanks around the colon, becomes
//! `"model":"<client's>"`; nothing else changes, and nothing is parsed. Generated text cannot be
//! mistaken for the member, since JSON escapes its quotes.
//!
//! A member may be split between chunks. Then the bytes from its start are held back until the next
//! chunk decides, never more than [`WriteBack::longest`] and never past the end of the body. A chunk
//! without a member is handed on as it came, without a copy.

use memchr::memmem;

const KEY: &[u8] = b"\"model\"";

/// Blanks that are looked over on either side of the colon. Pretty-printed JSON has one; a bound
/// keeps what is held back short.
const BLANKS_MAX: usize = 8;

/// The replacement in one response.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WriteBack {
    /// The served name as a JSON string, quotes included.
    served: Vec<u8>,
    /// The whole member as the client is to see it.
    member: Vec<u8>,
    /// Bytes that may be the start of a member.
    held: Vec<u8>,
}

/// How the bytes at one place compare with a member.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Found {
    /// A member of so many bytes.
    Member(usize),
    /// A member as far as it is here.
    Part,
    Nothing,
}

impl WriteBack {
    /// Replaces `served` by `client`. `None` where there is nothing to replace.
    pub fn new(served: &str, client: &str) -> Option<Self> {
        if served == client {
            return None;
        }
        let mut member = KEY.to_vec();
        member.push(b':');
        member.extend(quoted(client));
        Some(Self {
            served: quoted(served),
            member,
            held: Vec::new(),
        })
    }

    /// Takes a chunk and returns what goes on in its place, which may be empty. With `is_last`
    /// nothing stays behind.
    pub fn push(&mut self, chunk: Vec<u8>, is_last: bool) -> Vec<u8> {
        let mut bytes = chunk;
        if !self.held.is_empty() {
            self.held.append(&mut bytes);
            bytes = std::mem::take(&mut self.held);
        }
        let mut replaced: Option<Vec<u8>> = None;
        let mut copied = 0;
        let mut from = 0;
        while let Some(start) = next_key(&bytes, from, is_last) {
            match self.compare(bytes.get(start..).unwrap_or_default()) {
                Found::Member(length) => {
                    let out = replaced.get_or_insert_with(|| Vec::with_capacity(bytes.len()));
                    out.extend_from_slice(bytes.get(copied..start).unwrap_or_default());
                    out.extend_from_slice(&self.member);
                    copied = start + length;
                    from = copied;
                }
                Found::Part if !is_last => {
                    self.held = bytes.split_off(start);
                    break;
                }
                Found::Part | Found::Nothing => from = start + 1,
            }
        }
        match replaced {
            None => bytes,
            Some(mut out) => {
                out.extend_from_slice(bytes.get(copied..).unwrap_or_default());
                out
            }
        }
    }

    /// What is held back, for a body that ends without a last chunk.
    pub fn finish(&mut self) -> Vec<u8> {
        self.push(Vec::new(), true)
    }

    /// The most bytes that are ever held back.
    pub fn longest(&self) -> usize {
        KEY.len() + 1 + 2 * BLANKS_MAX + self.served.len()
    }

    fn compare(&self, bytes: &[u8]) -> Found {
        let mut at = 0;
        for (part, blanks_before) in [
            (KEY, 0),
            (&b":"[..], BLANKS_MAX),
            (&self.served, BLANKS_MAX),
        ] {
            let blanks = bytes.get(at..).unwrap_or_default();
            let blanks = blanks.iter().take(blanks_before);
            at += blanks.take_while(|byte| byte.is_ascii_whitespace()).count();
            let here = bytes.get(at..).unwrap_or_default();
            if here.len() < part.len() {
                return if part.starts_with(here) {
                    Found::Part
                } else {
                    Found::Nothing
                };
            }
            if !here.starts_with(part) {
                return Found::Nothing;
            }
            at += part.len();
        }
        Found::Member(at)
    }
}

/// The next place at or after `from` where [`KEY`] stands or, at the end of a chunk that is not the
/// last, may begin.
fn next_key(bytes: &[u8], from: usize, is_last: bool) -> Option<usize> {
    let rest = bytes.get(from..)?;
    if let Some(at) = memmem::find(rest, KEY) {
        return Some(from + at);
    }
    if is_last {
        return None;
    }
    let longest = rest.len().min(KEY.len() - 1);
    (1..=longest)
        .rev()
        .map(|length| rest.len() - length)
        .find(|at| rest.get(*at..).is_some_and(|tail| KEY.starts_with(tail)))
        .map(|at| from + at)
}

/// A JSON string, as serializers of the field write it: no needless escapes.
fn quoted(text: &str) -> Vec<u8> {
    serde_json::Value::from(text).to_string().into_bytes()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn written(chunks: &[&[u8]]) -> Vec<u8> {
        let mut write_back = WriteBack::new("served/1", "client").expect("two names");
        let last = chunks.len() - 1;
        let chunks = chunks.iter().enumerate();
        let parts = chunks.map(|(index, chunk)| {
            let out = write_back.push(chunk.to_vec(), index == last);
            assert!(write_back.held.len() <= write_back.longest());
            out
        });
        parts.collect::<Vec<_>>().concat()
    }

    #[test]
    fn replaces_the_member_and_nothing_else() {
        let body = br#"{"model":"served/1","x":"\"model\":\"served/1\"","y":{"model" : "served/1"},"model":"served/12"}"#;
        let expected = br#"{"model":"client","x":"\"model\":\"served/1\"","y":{"model":"client"},"model":"served/12"}"#;
        assert_eq!(written(&[body]), expected);
    }

    #[test]
    fn same_name_needs_nothing() {
        assert_eq!(WriteBack::new("m", "m"), None);
    }

    #[test]
    fn untouched_chunk_is_moved() {
        let mut write_back = WriteBack::new("a", "b").expect("two names");
        let chunk = br#"data: {"choices":[{"delta":{"content":"hi"}}]}"#.to_vec();
        let address = chunk.as_ptr();
        let out = write_back.push(chunk, false);
        assert_eq!(out.as_ptr(), address);
    }

    #[test]
    fn split_member_is_held_back_and_the_end_never_is() {
        let mut write_back = WriteBack::new("a", "b").expect("two names");
        assert_eq!(write_back.push(b"{\"mod".to_vec(), false), b"{");
        assert_eq!(write_back.push(b"el\":\"a".to_vec(), false), b"");
        assert_eq!(write_back.push(b"\"}".to_vec(), false), b"\"model\":\"b\"}");
        assert_eq!(write_back.push(b"x\"mod".to_vec(), false), b"x");
        assert_eq!(write_back.finish(), b"\"mod");
    }

    #[test]
    fn names_are_escaped_as_json() {
        let mut write_back = WriteBack::new("a\"b", "c\\d").expect("two names");
        let out = write_back.push(br#"{"model":"a\"b"}"#.to_vec(), true);
        assert_eq!(out, br#"{"model":"c\\d"}"#);
    }

    /// The replacement on a whole body, place by place.
    fn plain(body: &[u8]) -> Vec<u8> {
        let write_back = WriteBack::new("served/1", "client").expect("two names");
        let mut out = Vec::new();
        let mut at = 0;
        while at < body.len() {
            if let Found::Member(length) = write_back.compare(&body[at..]) {
                out.extend_from_slice(b"\"model\":\"client\"");
                at += length;
            } else {
                out.push(body[at]);
                at += 1;
            }
        }
        out
    }

    proptest! {
        #[test]
        fn equals_the_replacement_on_the_whole_body_for_any_chunking(
            words in prop::collection::vec(
                prop::sample::select(vec![
                    "\"model\"", ":", " ", "\"served/1\"", "\"mo", "del\"", "\"model\":\"served/1\"", "\"", "x",
                    "\"served", "/1\"", "\n",
                ]),
                0..30,
            ),
            cuts in prop::collection::vec(0_usize..200, 0..12),
        ) {
            let body = words.concat().into_bytes();
            let mut borders: Vec<usize> = cuts.into_iter().map(|cut| cut.min(body.len())).collect();
            borders.extend([0, body.len()]);
            borders.sort_unstable();
            let chunks: Vec<&[u8]> = borders.windows(2).map(|pair| &body[pair[0]..pair[1]]).collect();
            prop_assert_eq!(written(&chunks), plain(&body));
        }
    }
}
