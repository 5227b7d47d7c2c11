//! Another model name in a held body: exactly the bytes of the model's JSON string change.
//!
//! A body is held as the chunks it came in, and re-sent as such. So the new name is spliced into the
//! chunks that the old one lies in; what the client wrote elsewhere (spaces, order, duplicate keys,
//! numbers that no float holds) stays byte for byte, and no other chunk is even moved.

use std::ops::Range;

/// A name as a JSON string, quotes included: what [`splice`] puts in.
pub fn json_string(name: &str) -> Vec<u8> {
    serde_json::Value::from(name).to_string().into_bytes()
}

/// A span that does not lie in the body.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("the model's place {}..{} does not lie in a body of {body_bytes} bytes", span.start, span.end)]
pub struct SpanOutside {
    pub span: Range<usize>,
    pub body_bytes: usize,
}

/// Replaces the bytes `span` of the body that the chunks make up. Chunks that held nothing but the
/// old bytes are removed. On an error nothing has changed.
pub fn splice(
    chunks: &mut Vec<Vec<u8>>,
    span: Range<usize>,
    new_json_string: &[u8],
) -> Result<(), SpanOutside> {
    let Some(first) = first_chunk(chunks, &span) else {
        let body_bytes = chunks.iter().map(Vec::len).sum();
        return Err(SpanOutside { span, body_bytes });
    };
    let mut left = span.len();
    if let Some(chunk) = chunks.get_mut(first.position) {
        let end = chunk.len().min(first.offset + left);
        left -= end - first.offset;
        chunk.splice(first.offset..end, new_json_string.iter().copied());
    }
    // The rest of the old bytes is at the beginning of the chunks behind.
    let mut emptied = 0;
    for chunk in chunks.iter_mut().skip(first.position + 1) {
        if left == 0 {
            break;
        }
        if chunk.len() <= left {
            left -= chunk.len();
            emptied += 1;
        } else {
            chunk.drain(..left);
            left = 0;
        }
    }
    let behind = first.position + 1;
    chunks.drain(behind..behind + emptied);
    Ok(())
}

/// Where a span begins.
struct First {
    position: usize,
    offset: usize,
}

/// The chunk that a span begins in; nothing if the span is turned around, or reaches beyond the
/// body.
fn first_chunk(chunks: &[Vec<u8>], span: &Range<usize>) -> Option<First> {
    let length = span.end.checked_sub(span.start)?;
    let mut offset = span.start;
    let (position, inside) = chunks.iter().enumerate().find_map(|(position, chunk)| {
        let inside = chunk.len().checked_sub(offset);
        match inside {
            Some(inside) if inside > 0 || length == 0 => Some((position, inside)),
            _ => {
                offset -= chunk.len();
                None
            }
        }
    })?;
    let behind = chunks.iter().skip(position + 1).map(Vec::len);
    (inside + behind.sum::<usize>() >= length).then_some(First { position, offset })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn chunked(body: &[u8], cuts: &[usize]) -> Vec<Vec<u8>> {
        let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut % (body.len() + 1)).collect();
        cuts.sort_unstable();
        let mut start = 0;
        let mut chunks = Vec::new();
        for cut in cuts.into_iter().chain([body.len()]) {
            chunks.push(body[start..cut].to_vec());
            start = cut;
        }
        chunks
    }

    #[test]
    fn a_name_across_chunks_is_replaced_in_the_first_of_them() {
        let mut chunks: Vec<Vec<u8>> = ["{\"model\":\"fo", "o", "o\" ", ",\"x\":1}"]
            .map(|chunk| chunk.as_bytes().to_vec())
            .to_vec();
        splice(&mut chunks, 9..15, &json_string("b\"ar")).unwrap();
        assert_eq!(
            chunks,
            [
                b"{\"model\":\"b\\\"ar\"".to_vec(),
                b" ".to_vec(),
                b",\"x\":1}".to_vec()
            ]
        );
    }

    #[test]
    fn chunks_of_nothing_but_the_old_name_go() {
        let mut chunks: Vec<Vec<u8>> = ["ab", "cd", "", "ef", "gh"]
            .map(|chunk| chunk.as_bytes().to_vec())
            .to_vec();
        splice(&mut chunks, 1..6, b"new").unwrap();
        assert_eq!(chunks, [b"anew".to_vec(), b"gh".to_vec()]);
    }

    #[test]
    fn a_span_outside_changes_nothing() {
        for span in [3..9, 8..8, 8..9, Range { start: 2, end: 1 }, 0..usize::MAX] {
            let mut chunks = vec![b"abc".to_vec(), b"def".to_vec()];
            let error = splice(&mut chunks, span.clone(), b"new").unwrap_err();
            assert_eq!(
                error,
                SpanOutside {
                    span,
                    body_bytes: 6
                }
            );
            assert_eq!(chunks, [b"abc".to_vec(), b"def".to_vec()]);
        }
        assert!(splice(&mut Vec::new(), 0..1, b"new").is_err());
    }

    proptest! {
        #[test]
        fn splicing_is_replacing_in_the_joined_body(
            body in prop::collection::vec(any::<u8>(), 1..60),
            cuts in prop::collection::vec(any::<usize>(), 0..8),
            ends in (any::<usize>(), any::<usize>()),
            new in prop::collection::vec(any::<u8>(), 0..12),
        ) {
            let (one, other) = (ends.0 % (body.len() + 1), ends.1 % (body.len() + 1));
            let span = one.min(other)..one.max(other);
            let mut expected = body.clone();
            expected.splice(span.clone(), new.iter().copied());
            let before = chunked(&body, &cuts);
            let mut chunks = before.clone();
            splice(&mut chunks, span.clone(), &new).unwrap();
            prop_assert_eq!(chunks.concat(), expected);
            // Chunks that end before the span, or begin behind it, are the same as before.
            let mut start = 0;
            let mut untouched_before = 0;
            for chunk in &before {
                start += chunk.len();
                if start <= span.start && !(start == span.start && span.is_empty()) && start < body.len() {
                    untouched_before += 1;
                } else {
                    break;
                }
            }
            prop_assert_eq!(&chunks[..untouched_before], &before[..untouched_before]);
            let mut end = body.len();
            for (kept, chunk) in chunks.iter().rev().zip(before.iter().rev()) {
                end -= chunk.len();
                if end < span.end || end <= span.start {
                    break;
                }
                prop_assert_eq!(kept, chunk);
            }
        }
    }
}
