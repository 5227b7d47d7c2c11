//! Golden bytes of the protocol, and what a broken peer may send.

use proptest::prelude::*;

use super::*;

fn greeted() -> Decoder {
    let mut decoder = Decoder::default();
    let mut buffer = BytesMut::from(&greeting()[..]);
    assert_eq!(decoder.decode(&mut buffer), Ok(Some(Incoming::Greeting)));
    decoder
}

fn decode(bytes: &[u8]) -> Result<Option<Incoming>, ZmtpError> {
    greeted().decode(&mut BytesMut::from(bytes))
}

#[test]
fn our_own_bytes_are_those_of_the_rfc() {
    let greeting = greeting();
    assert_eq!(greeting[..12], [0xff, 0, 0, 0, 0, 0, 0, 0, 0, 0x7f, 3, 0]);
    assert_eq!(&greeting[12..33], b"NULL\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0");
    assert_eq!(
        &ready(Role::Subscriber)[..],
        b"\x04\x19\x05READY\x0bSocket-Type\x00\x00\x00\x03SUB"
    );
    assert_eq!(
        &ready(Role::Dealer)[..],
        b"\x04\x29\x05READY\x0bSocket-Type\x00\x00\x00\x06DEALER\x08Identity\x00\x00\x00\x00"
    );
    assert_eq!(&subscribe_all()[..], [0, 1, 1]);
    assert_eq!(&pong(b"ctx")[..], b"\x04\x08\x04PONGctx");
    assert_eq!(
        &message(&[Bytes::new(), Bytes::from_static(&[7; 8])])[..],
        [1, 0, 0, 8, 7, 7, 7, 7, 7, 7, 7, 7]
    );
}

#[test]
fn commands_are_read() {
    let ready = decode(&ready(Role::Dealer));
    let socket_type = Bytes::from_static(b"DEALER");
    assert_eq!(ready, Ok(Some(Incoming::Ready { socket_type })));
    let ping = decode(b"\x04\x09\x04PING\x00\x10ab");
    let context = Bytes::from_static(b"ab");
    assert_eq!(ping, Ok(Some(Incoming::Ping { context })));
    let refused = decode(b"\x04\x09\x05ERROR\x02no");
    let reason = "no".to_owned();
    assert_eq!(refused, Ok(Some(Incoming::Refused { reason })));
    assert_eq!(decode(b"\x04\x04\x03FOO"), Ok(Some(Incoming::Other)));
    for malformed in [
        &b"\x04\x00"[..],
        b"\x04\x03\x05RE",
        b"\x04\x06\x05READY",
        b"\x04\x0b\x05READY\x0bSock",
        b"\x04\x16\x05READY\x0bSocket-Type\xff\xff\xff\xff",
    ] {
        assert_eq!(decode(malformed), Err(ZmtpError::Command), "{malformed:?}");
    }
}

#[test]
fn peers_of_other_kinds_are_named() {
    assert_eq!(check_peer(Role::Subscriber, b"XPUB"), Ok(()));
    assert_eq!(check_peer(Role::Dealer, b"ROUTER"), Ok(()));
    let error = check_peer(Role::Subscriber, b"ROUTER").unwrap_err();
    assert_eq!(error.to_string(), "the peer is a ROUTER socket");
    check_peer(Role::Dealer, b"PUB").unwrap_err();
}

#[test]
fn whoever_speaks_something_else_is_refused_at_once() {
    let first = |bytes: &[u8]| Decoder::default().decode(&mut BytesMut::from(bytes));
    assert_eq!(first(b"HTTP/1.1 400"), Err(ZmtpError::Greeting));
    assert_eq!(first(b""), Ok(None));
    assert_eq!(first(&[0xff; 63]), Ok(None));
    let mut old = greeting();
    old[10] = 2;
    assert_eq!(first(&old), Err(ZmtpError::Greeting));
    let mut secure = greeting();
    secure[12..17].copy_from_slice(b"CURVE");
    assert_eq!(first(&secure), Err(ZmtpError::Mechanism));
}

#[test]
fn announced_lengths_are_refused_before_a_byte_of_them_came() {
    let long = |flags: u8, length: u64| {
        let mut bytes = vec![flags | LONG];
        bytes.extend(length.to_be_bytes());
        decode(&bytes)
    };
    for length in [u64::MAX, 1 << 62, MESSAGE_BYTES_MAX as u64 + 1] {
        assert_eq!(
            long(0, length),
            Err(ZmtpError::MessageTooLong { bytes: length })
        );
    }
    assert_eq!(long(0, MESSAGE_BYTES_MAX as u64), Ok(None));
    let bytes = COMMAND_BYTES_MAX as u64 + 1;
    assert_eq!(
        long(COMMAND, bytes),
        Err(ZmtpError::CommandTooLong { bytes })
    );
    for flags in [0x08, 0x80, MORE | COMMAND] {
        assert_eq!(decode(&[flags, 0]), Err(ZmtpError::Flags(flags)));
    }
}

#[test]
fn a_message_that_never_ends_is_refused() {
    let endless = [MORE, 1, b'x'].repeat(FRAMES_MAX + 1);
    assert_eq!(decode(&endless), Err(ZmtpError::TooManyFrames));
    let mut decoder = greeted();
    let half = MESSAGE_BYTES_MAX / 2 + 1;
    let mut buffer = BytesMut::from(&frame(MORE, &vec![0; half])[..]);
    assert_eq!(decoder.decode(&mut buffer), Ok(None));
    let mut second = BytesMut::from(&frame(0, &vec![0; half])[..9]);
    assert_eq!(
        decoder.decode(&mut second),
        Err(ZmtpError::MessageTooLong {
            bytes: 2 * half as u64
        })
    );
}

proptest! {
    /// However the bytes are cut on their way, the same messages come out.
    #[test]
    fn messages_survive_any_cut(
        messages in proptest::collection::vec(
            proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..400), 1..FRAMES_MAX),
            1..6,
        ),
        cuts in proptest::collection::vec(1_usize..600, 1..20),
    ) {
        let sent: Vec<Vec<Bytes>> = messages
            .into_iter()
            .map(|frames| frames.into_iter().map(Bytes::from).collect())
            .collect();
        let stream: Vec<u8> = sent.iter().flat_map(|frames| message(frames)).collect();
        let mut decoder = greeted();
        let mut buffer = BytesMut::new();
        let mut received = Vec::new();
        let mut rest = &stream[..];
        for cut in cuts.iter().cycle() {
            if rest.is_empty() {
                break;
            }
            let (chunk, tail) = rest.split_at((*cut).min(rest.len()));
            buffer.extend_from_slice(chunk);
            rest = tail;
            while let Some(Incoming::Message(frames)) = decoder.decode(&mut buffer).unwrap() {
                received.push(frames);
            }
        }
        prop_assert_eq!(received, sent);
    }

    #[test]
    fn random_bytes_are_survived(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        let mut decoder = greeted();
        let mut buffer = BytesMut::from(&bytes[..]);
        while let Ok(Some(_)) = decoder.decode(&mut buffer) {}
        prop_assert!(decoder.frames.len() <= FRAMES_MAX);
    }
}
