//! Traces as files: good ones, bad ones, and the recorded one.

use std::fs;
use std::path::Path;
use std::time::Duration;

use super::*;

fn read_text(name: &str, text: &str, options: TraceOptions) -> Result<Workload, TraceError> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join(name);
    fs::write(&path, text).unwrap();
    read(&path, options)
}

fn problem(name: &str, text: &str) -> String {
    let error = read_text(name, text, TraceOptions::default()).unwrap_err();
    error.to_string()
}

const MOONCAKE: &str = r#"{"timestamp": 0, "input_length": 1000, "output_length": 50, "hash_ids": [0, 14]}
{"timestamp": 500, "input_length": 512, "output_length": 7, "hash_ids": [0]}

{"timestamp": 3000, "input_length": 1024, "output_length": 9, "hash_ids": [0, 14]}
"#;

#[test]
fn blocks_become_segments_and_the_last_may_be_partial() {
    let workload = read_text("t.jsonl", MOONCAKE, TraceOptions::default()).unwrap();
    let lengths: Vec<Vec<u32>> = workload
        .requests
        .iter()
        .map(|one| one.prompt.iter().map(|segment| segment.tokens).collect())
        .collect();
    assert_eq!(lengths, [vec![512, 488], vec![512], vec![512, 512]]);
    let [first, second, third] = workload.requests.as_slice() else {
        panic!("{} requests", workload.requests.len());
    };
    assert_eq!(first.prompt[0].id, second.prompt[0].id);
    assert_eq!(first.prompt[1].id, third.prompt[1].id);
    assert_ne!(first.answer.id, third.answer.id);
    assert_eq!(first.session, third.session);
    assert_ne!(first.session, second.session);
    assert_eq!(third.at, Duration::from_secs(3));
    assert_eq!(workload.sharing().shared_tokens, 512 + 1000);
    assert_eq!(workload.name, "t.jsonl");
}

#[test]
fn skip_and_limit_count_requests_or_time() {
    let times = |skip: Option<&str>, limit: Option<&str>| {
        let extent = |text: Option<&str>| text.map(|text| text.parse().unwrap());
        let options = TraceOptions {
            skip: extent(skip),
            limit: extent(limit),
            block_tokens: None,
        };
        let workload = read_text("t.jsonl", MOONCAKE, options).unwrap();
        let times = workload.requests.iter().map(|one| one.at.as_millis());
        times.collect::<Vec<_>>()
    };
    assert_eq!(times(None, Some("2")), [0, 500]);
    assert_eq!(times(None, Some("0.5s")), [0]);
    assert_eq!(times(Some("1"), None), [0, 2500]);
    assert_eq!(times(Some("0.25s"), Some("1s")), [250]);
    assert!("five".parse::<Extent>().is_err() && "-1s".parse::<Extent>().is_err());
}

#[test]
fn a_bad_line_is_named_with_its_file_and_number() {
    let cut = problem("t.jsonl", "\n{\"timestamp\": 0, \"input_len");
    assert!(cut.contains("t.jsonl:2: EOF while parsing"), "{cut}");
    let blocks = MOONCAKE.replace("[0]", "[0, 1]");
    let blocks = problem("t.jsonl", &blocks);
    assert!(
        blocks.contains(
            "t.jsonl:2: input_length 512 is 1 blocks of 512 tokens, but hash_ids names 2"
        )
    );
    let order = problem("t.jsonl", &MOONCAKE.replace("3000", "1"));
    assert!(
        order.contains("t.jsonl:4: its time 1ms is before"),
        "{order}"
    );
    let long = problem("t.jsonl", &"x".repeat(lines::LINE_BYTES_MAX + 2));
    assert!(long.contains("t.jsonl:1: longer than"), "{long}");
    assert!(problem("t.jsonl", "\n").contains("holds no request"));
}

const AZURE: &str = "TIMESTAMP,ContextTokens,GeneratedTokens\r\n\
    2023-11-16 18:17:03.9799600,4808,10\r\n2023-11-16 18:17:04.0319600,3180,8\r\n";

#[test]
fn azure_lines_share_nothing() {
    let workload = read_text("t.csv", AZURE, TraceOptions::default()).unwrap();
    assert_eq!(workload.requests[1].at.as_millis(), 52);
    assert_eq!(workload.totals().prompt_tokens, 4808 + 3180);
    assert_eq!(workload.totals().answer_tokens, 18);
    assert_eq!(workload.sharing().shared_tokens, 0);
}

#[test]
fn a_bad_azure_line_is_named_with_its_file_and_number() {
    assert!(problem("t.csv", "a,b\n").contains("t.csv:1: the header is not TIMESTAMP"));
    let short = problem("t.csv", &AZURE.replace(",8\r", "\r"));
    assert!(
        short.contains("t.csv:3: GeneratedTokens is missing"),
        "{short}"
    );
    let zero = problem("t.csv", &AZURE.replace(",4808,", ",0,"));
    assert!(
        zero.contains("t.csv:2: ContextTokens `0` is no number"),
        "{zero}"
    );
}

/// The recorded trace: in the repository it is packed.
#[test]
fn the_recorded_trace_shares_at_most_what_was_published() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("traces/mooncake_conversation.jsonl.zst");
    let workload = read(&path, TraceOptions::default()).unwrap();
    let totals = workload.totals();
    assert_eq!(totals.requests, 12_031);
    assert_eq!(totals.prompt_tokens / 12_031, 12_035);
    let sharing = workload.sharing();
    assert_eq!(sharing.segments, 288_500);
    assert!(
        (sharing.segment_share() - 0.366).abs() < 0.0005,
        "{}",
        sharing.segment_share()
    );
}

/// Azure's trace is not part of the repository.
#[test]
fn the_recorded_azure_trace_is_read_where_it_is() {
    let path =
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/traces/azure_2023_code.csv");
    if !path.is_file() {
        println!("skipped: {} is absent", path.display());
        return;
    }
    let workload = read(&path, TraceOptions::default()).unwrap();
    assert!(workload.requests.len() > 8_000);
    assert_eq!(workload.sharing().shared_tokens, 0);
}
