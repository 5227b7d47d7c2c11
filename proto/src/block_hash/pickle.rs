//! Python's pickle, protocol 5, of the tuple `(parent, (token, …), extra)`: the small part of its grammar
//! that this tuple can come out as.
//!
//! ```text
//! 80 05                  protocol 5
//! 95 <u64 LE>            one frame over all that follows
//!   43 20 <32 bytes> 94  short bytes: the parent; 94 after each value notes it for references
//!   28 <int> × 16 74 94  mark, the token ids, tuple     (up to three: no mark, 85 | 86 | 87 after them)
//!        4b <u8>  4d <u16 LE>  4a <i32 LE>  8a 05 <5 bytes LE>
//!   4e                   None without extras, else a tuple of
//!                        ("lora", name, path) and ("cache_salt", salt), strings as 8c <u8 length> <UTF-8> 94
//!   87 94 2e             tuple of three; the end
//! ```
//!
//! CPython writes these bytes in every release since protocol 5 came in 3.8. It would write them otherwise in
//! two cases that engines do not reach: documents above 64 KiB are cut into several frames, and one and the
//! same string *object* used twice is a reference the second time.

use super::ExtraKey;
use super::digest::Put;

const PROTOCOL: [u8; 2] = [0x80, 5];
const FRAME: u8 = 0x95;
const MEMOIZE: u8 = 0x94;
const MARK: u8 = b'(';
const NONE: u8 = b'N';
const STOP: u8 = b'.';
const SHORT_BYTES: u8 = b'C';
const SHORT_TEXT: u8 = 0x8c;
const TEXT: u8 = b'X';
const INT_1: u8 = b'K';
const INT_2: u8 = b'M';
const INT_4: u8 = b'J';
const LONG_1: u8 = 0x8a;

/// A document that is one string.
pub(super) fn text_document(out: &mut impl Put, value: &str) {
    document(out, |out| text(out, value));
}

/// A document that is the tuple of a block.
pub(super) fn block_document(
    out: &mut impl Put,
    parent: &[u8],
    tokens: &[u32],
    extra: &[ExtraKey<'_>],
) {
    document(out, |out| {
        out.put(&[SHORT_BYTES, parent.len() as u8]);
        out.put(parent);
        out.put(&[MEMOIZE]);
        tuple(out, tokens, |out, token| int(out, *token));
        if extra.is_empty() {
            out.put(&[NONE]);
        } else {
            tuple(out, extra, extra_key);
        }
        end_of_tuple(out, 3);
    });
}

/// The frame's length stands before its contents, so these are written twice, first to be counted.
fn document(out: &mut impl Put, contents: impl Fn(&mut dyn Put)) {
    let mut length = Length(0);
    contents(&mut length);
    out.put(&PROTOCOL);
    out.put(&[FRAME]);
    out.put(&(length.0 + 1).to_le_bytes());
    contents(out);
    out.put(&[STOP]);
}

fn extra_key(out: &mut dyn Put, key: &ExtraKey<'_>) {
    match key {
        ExtraKey::Lora { name, path } => {
            tuple(out, &["lora", name, path], |out, part| text(out, part));
        }
        ExtraKey::CacheSalt(salt) => {
            tuple(out, &["cache_salt", salt], |out, part| text(out, part));
        }
    }
}

fn tuple<T>(out: &mut dyn Put, items: &[T], write: impl Fn(&mut dyn Put, &T)) {
    if items.len() > 3 {
        out.put(&[MARK]);
    }
    for item in items {
        write(out, item);
    }
    end_of_tuple(out, items.len());
}

/// The empty tuple is one object in all of Python and is never noted.
fn end_of_tuple(out: &mut dyn Put, items: usize) {
    match items {
        0 => out.put(b")"),
        1 => out.put(&[0x85, MEMOIZE]),
        2 => out.put(&[0x86, MEMOIZE]),
        3 => out.put(&[0x87, MEMOIZE]),
        _ => out.put(&[b't', MEMOIZE]),
    }
}

fn text(out: &mut dyn Put, text: &str) {
    if let Ok(length) = u8::try_from(text.len()) {
        out.put(&[SHORT_TEXT, length]);
    } else {
        out.put(&[TEXT]);
        out.put(&(text.len() as u32).to_le_bytes());
    }
    out.put(text.as_bytes());
    out.put(&[MEMOIZE]);
}

fn int(out: &mut dyn Put, value: u32) {
    let [a, b, c, d] = value.to_le_bytes();
    if value <= 0xff {
        out.put(&[INT_1, a]);
    } else if value <= 0xffff {
        out.put(&[INT_2, a, b]);
    } else if i32::try_from(value).is_ok() {
        out.put(&[INT_4, a, b, c, d]);
    } else {
        // Two's complement: the upper bit is set, so a byte for the sign comes after it.
        out.put(&[LONG_1, 5, a, b, c, d, 0]);
    }
}

/// Counts what is written.
struct Length(u64);

impl Put for Length {
    fn put(&mut self, bytes: &[u8]) {
        self.0 += bytes.len() as u64;
    }
}
