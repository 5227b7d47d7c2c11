//! Canonical CBOR (RFC 8949 §4.2, shortest heads) of the tuple `(parent, (token, …), extra)`.
//!
//! ```text
//! 83                     array of 3
//!   58 20 <32 bytes>     parent digest (50 <16 bytes> for a short one), or the none hash
//!   90 <uint> × 16       the token ids
//!   f6                   null without extras, else an array of
//!                        ["lora", name, path] and ["cache_salt", salt]
//! ```

use super::ExtraKey;
use super::digest::Put;

/// CBOR major types, already shifted into the upper three bits of the head byte.
const UNSIGNED: u8 = 0 << 5;
const BYTES: u8 = 2 << 5;
const TEXT: u8 = 3 << 5;
const ARRAY: u8 = 4 << 5;
const NULL: u8 = 0xf6;

pub(super) fn block(out: &mut impl Put, parent: &[u8], tokens: &[u32], extra: &[ExtraKey<'_>]) {
    head(out, ARRAY, 3);
    head(out, BYTES, parent.len() as u64);
    out.put(parent);
    head(out, ARRAY, tokens.len() as u64);
    for token in tokens {
        head(out, UNSIGNED, u64::from(*token));
    }
    if extra.is_empty() {
        out.put(&[NULL]);
    } else {
        extras(out, extra);
    }
}

/// The array of extra keys.
pub(super) fn extras(out: &mut impl Put, extra: &[ExtraKey<'_>]) {
    head(out, ARRAY, extra.len() as u64);
    for key in extra {
        match key {
            ExtraKey::Lora { name, path } => {
                head(out, ARRAY, 3);
                text(out, "lora");
                text(out, name);
                text(out, path);
            }
            ExtraKey::CacheSalt(salt) => {
                head(out, ARRAY, 2);
                text(out, "cache_salt");
                text(out, salt);
            }
        }
    }
}

pub(super) fn text(out: &mut impl Put, text: &str) {
    head(out, TEXT, text.len() as u64);
    out.put(text.as_bytes());
}

/// Writes a head in its shortest form, as canonical CBOR asks.
fn head(out: &mut impl Put, major: u8, value: u64) {
    if value < 24 {
        out.put(&[major | value as u8]);
    } else if let Ok(byte) = u8::try_from(value) {
        out.put(&[major | 0x18, byte]);
    } else if let Ok(short) = u16::try_from(value) {
        let [high, low] = short.to_be_bytes();
        out.put(&[major | 0x19, high, low]);
    } else if let Ok(word) = u32::try_from(value) {
        let [a, b, c, d] = word.to_be_bytes();
        out.put(&[major | 0x1a, a, b, c, d]);
    } else {
        out.put(&[major | 0x1b]);
        out.put(&value.to_be_bytes());
    }
}
