//! The whole way of a publisher's bytes: ZMTP, frames, msgpack, events.
//!
//! Nothing may panic, nothing may be reserved that is not there, and an event that was read, written
//! in either form and read again is the same event.

#![no_main]

use bytes::BytesMut;
use libfuzzer_sys::fuzz_target;
use pointsman_epp::fleet::kv_events::{frames, zmtp};
use pointsman_proto::kv_events::{Batch, EventBatch, Form, decode, encode};

fuzz_target!(|data: &[u8]| {
    read_connection(data);
    let Ok(decoded) = decode(data) else {
        return;
    };
    let items = Batch::open(data).expect("what decode reads, Batch reads").count();
    assert!(items >= decoded.batch.events.len() + decoded.skipped.len());
    for form in [Form::Map, Form::Array] {
        repeat(&decoded.batch, form);
    }
});

fn repeat(batch: &EventBatch, form: Form) {
    let mut out = Vec::new();
    encode(batch, form, &mut out);
    let again = decode(&out).expect("our own bytes");
    assert!(again.skipped.is_empty(), "{:?}", again.skipped);
    assert_eq!(again.batch.events, batch.events);
    assert_eq!(again.batch.data_parallel_rank, batch.data_parallel_rank);
    assert_eq!(again.batch.timestamp_s.to_bits(), batch.timestamp_s.to_bits());
}

/// Takes the bytes for a connection that has shaken hands.
fn read_connection(data: &[u8]) {
    let mut buffer = BytesMut::from(&zmtp::greeting()[..]);
    buffer.extend_from_slice(data);
    let mut decoder = zmtp::Decoder::default();
    while let Ok(Some(incoming)) = decoder.decode(&mut buffer) {
        if let zmtp::Incoming::Message(message) = incoming {
            assert!(message.len() <= zmtp::FRAMES_MAX);
            assert_eq!(&*zmtp_round_trip(&message), message);
            let _ = frames::answer(&message);
            if let Ok(message) = frames::live(&message) {
                let _ = frames::model_of(&message.topic);
                let _ = decode(&message.payload);
            }
        }
    }
}

fn zmtp_round_trip(message: &[bytes::Bytes]) -> Vec<bytes::Bytes> {
    let mut buffer = BytesMut::from(&zmtp::greeting()[..]);
    buffer.extend_from_slice(&zmtp::message(message));
    let mut decoder = zmtp::Decoder::default();
    decoder.decode(&mut buffer).expect("a greeting");
    match decoder.decode(&mut buffer) {
        Ok(Some(zmtp::Incoming::Message(message))) => message,
        other => panic!("{other:?}"),
    }
}
