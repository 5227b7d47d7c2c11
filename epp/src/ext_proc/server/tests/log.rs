//! Access-log mode: streams that close, and entries that end what they started.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use bytes::{Buf, BufMut};
use envoy_types::pb::envoy::data::accesslog::v3::AccessLogType::{
    DownstreamEnd, DownstreamPeriodic,
};
use envoy_types::pb::envoy::extensions::filters::http::ext_proc::v3::processing_mode::BodySendMode;
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::codegen::http::uri::PathAndQuery;
use tonic::{Code, Status};

use super::rig::{BOOT, LEASE_MS, Rig, Told, in_time, until};
use crate::ext_proc::{Destination, End, LeaseToken, Watch};

async fn rig() -> Rig {
    let destination = Destination {
        endpoints: "[::1]:8000".to_owned(),
        ..Destination::default()
    };
    Rig::start(Watch::Auto, destination).await
}

fn read(counter: &AtomicU64) -> u64 {
    counter.load(Relaxed)
}

#[tokio::test]
async fn end_entry_releases_what_was_parked() {
    let mut rig = rig().await;
    let token = rig.parked().await;
    assert_eq!(rig.leases().parked(), 1);
    let log = rig.log();
    log.entry(DownstreamEnd, &token).await;
    let outcome = rig.finished().await;
    assert_eq!(outcome.end, End::Completed);
    assert_eq!(outcome.measured.ttft_us, Some(120_000));
    assert_eq!(outcome.measured.duration_us, Some(500_000));
    assert_eq!(rig.leases().parked(), 0);
    log.entry(DownstreamEnd, &token).await;
    let counters = rig.leases().counters();
    until(|| read(&counters.late) == 1).await;
    assert_eq!(read(&counters.ended), 1);
}

#[tokio::test]
async fn periodic_entries_renew_and_silence_expires() {
    let mut rig = rig().await;
    let token = rig.parked().await;
    let log = rig.log();
    rig.hand.advance_ms(LEASE_MS - 1);
    log.entry(DownstreamPeriodic, &token).await;
    let Told::Progress(progress) = rig.told().await else {
        panic!("news")
    };
    assert_eq!(progress.ttft_us, Some(120_000));
    rig.hand.advance_ms(LEASE_MS - 1);
    rig.leases().expire_now();
    assert!(rig.was_told_nothing(), "renewed");
    rig.hand.advance_ms(1);
    rig.leases().expire_now();
    assert_eq!(rig.finished().await.end, End::Expired);
    let counters = rig.leases().counters();
    assert_eq!((read(&counters.renewed), read(&counters.expired)), (1, 1));
    log.entry(DownstreamEnd, &token).await;
    until(|| read(&counters.late) == 1).await;
    assert!(rig.was_told_nothing(), "finished once");
}

#[tokio::test]
async fn token_of_another_boot_is_counted_and_touches_nothing() {
    let mut rig = rig().await;
    let token: LeaseToken = rig.parked().await.parse().expect("a token");
    assert_eq!(token.boot, BOOT);
    let foreign = LeaseToken {
        boot: BOOT + 1,
        ..token
    };
    let log = rig.log();
    log.entry(DownstreamEnd, &foreign.to_string()).await;
    log.entry(DownstreamPeriodic, &foreign.to_string()).await;
    log.entry(DownstreamEnd, "not a token").await;
    let counters = rig.leases().counters();
    until(|| read(&counters.malformed) == 1).await;
    assert_eq!(read(&counters.foreign), 2);
    assert_eq!(rig.leases().parked(), 1);
    assert!(rig.was_told_nothing());
}

/// Sends bytes that are no message.
#[derive(Clone, Default)]
struct Raw;

impl Codec for Raw {
    type Encode = Vec<u8>;
    type Decode = ();
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        Self
    }

    fn decoder(&mut self) -> Self {
        Self
    }
}

impl Encoder for Raw {
    type Item = Vec<u8>;
    type Error = Status;

    fn encode(&mut self, item: Vec<u8>, buffer: &mut EncodeBuf<'_>) -> Result<(), Status> {
        buffer.put_slice(&item);
        Ok(())
    }
}

impl Decoder for Raw {
    type Item = ();
    type Error = Status;

    fn decode(&mut self, buffer: &mut DecodeBuf<'_>) -> Result<Option<()>, Status> {
        buffer.advance(buffer.remaining());
        Ok(Some(()))
    }
}

#[tokio::test]
async fn broken_log_stream_is_counted_and_the_next_one_is_read() {
    let mut rig = rig().await;
    let token = rig.parked().await;
    let mut client = tonic::client::Grpc::new(rig.channel.clone());
    client.ready().await.expect("connected");
    // A message whose one field is longer than the message.
    let cut = tonic::Request::new(tokio_stream::once(vec![0x12, 0x7f, 0x0a]));
    let path =
        PathAndQuery::from_static("/envoy.service.accesslog.v3.AccessLogService/StreamAccessLogs");
    let ended = in_time(client.client_streaming(cut, path, Raw)).await;
    assert_eq!(ended.expect_err("refused").code(), Code::Internal);
    let counters = rig.leases().counters();
    assert_eq!(read(&counters.broken_streams), 1);
    rig.log().entry(DownstreamEnd, &token).await;
    assert_eq!(rig.finished().await.end, End::Completed);
}

#[tokio::test]
async fn drain_waits_for_the_last_entry_and_then_ends_the_log() {
    let mut rig = rig().await;
    let token = rig.parked().await;
    let log = rig.log();
    log.entry(DownstreamPeriodic, &token).await;
    let Told::Progress(_) = rig.told().await else {
        panic!("news")
    };
    rig.stop.cancel();
    log.entry(DownstreamEnd, &token).await;
    assert_eq!(rig.finished().await.end, End::Completed);
    log.ended().await.expect("ended well");
    drop(rig.channel);
    in_time(rig.served)
        .await
        .expect("the server came to its end");
}

#[tokio::test]
async fn client_that_leaves_before_the_pick_opens_no_lease() {
    let mut rig = rig().await;
    let mut envoy = rig.stream(BodySendMode::None).await;
    envoy.request(&[(":method", "POST")]).await;
    drop(envoy);
    rig.processor.idle().await;
    assert_eq!(rig.leases().parked(), 0);
    assert!(rig.was_told_nothing());
}
