//! The frames of a gRPC body: a byte that says whether the message is compressed, its length as
//! u32 big-endian, and the message.

use super::ParseError;

/// Length of a frame's head.
const HEAD: usize = 5;

/// Why a body has no frame that can be read.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum FrameError {
    #[error("expected at least {HEAD} bytes for the frame's header, got {got}")]
    Head { got: usize },
    #[error("the frame's header indicates {expected} bytes, but only {got} bytes are available")]
    Incomplete { expected: u32, got: usize },
    #[error("compressed gRPC payload is not supported")]
    Compressed,
}

/// The message of a call that sends one. Further frames, if any, must be whole as well; they are not
/// looked into, since none of the calls that are read here sends several.
pub(super) fn message(body: &[u8]) -> Result<&[u8], FrameError> {
    let (first, mut rest) = frame(body)?;
    while !rest.is_empty() {
        (_, rest) = frame(rest)?;
    }
    Ok(first)
}

/// Decodes a message of the given name.
pub(super) fn decode<M: prost::Message + Default>(
    name: &'static str,
    message: &[u8],
) -> Result<M, ParseError> {
    M::decode(message).map_err(|reason| ParseError::Protobuf {
        message: name,
        reason,
    })
}

/// The first frame's message, and what lies behind it.
fn frame(bytes: &[u8]) -> Result<(&[u8], &[u8]), FrameError> {
    let Some((head, rest)) = bytes.split_first_chunk::<HEAD>() else {
        return Err(FrameError::Head { got: bytes.len() });
    };
    let [compressed, length @ ..] = *head;
    if compressed != 0 {
        return Err(FrameError::Compressed);
    }
    let expected = u32::from_be_bytes(length);
    let length = usize::try_from(expected).unwrap_or(usize::MAX);
    rest.split_at_checked(length).ok_or(FrameError::Incomplete {
        expected,
        got: rest.len(),
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn golden_frames() {
        assert_eq!(message(b"\0\0\0\0\x02hi"), Ok(&b"hi"[..]));
        assert_eq!(message(b"\0\0\0\0\0"), Ok(&b""[..]));
        assert_eq!(message(b"\0\0\0\0\x02hi\0\0\0\0\x01!"), Ok(&b"hi"[..]));
        assert_eq!(message(b""), Err(FrameError::Head { got: 0 }));
        assert_eq!(message(b"\x01\0\0\0\0"), Err(FrameError::Compressed));
        assert_eq!(
            message(b"\0\xff\xff\xff\xffhi"),
            Err(FrameError::Incomplete {
                expected: u32::MAX,
                got: 2
            })
        );
        assert_eq!(
            message(b"\0\0\0\0\x02hi\0\0"),
            Err(FrameError::Head { got: 2 })
        );
    }

    proptest! {
        #[test]
        fn a_framed_message_comes_back(bytes in prop::collection::vec(any::<u8>(), 0..64)) {
            let mut body = vec![0];
            body.extend_from_slice(&(bytes.len() as u32).to_be_bytes());
            body.extend_from_slice(&bytes);
            prop_assert_eq!(message(&body), Ok(bytes.as_slice()));
        }
    }
}
