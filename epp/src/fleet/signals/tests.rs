//! Pages of every engine, and the scanner against a parser that does it the plain way.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::Arc;

use proptest::prelude::*;

use super::super::engines::EngineTable;
use super::super::series_spec::SeriesSpec;
use super::*;

/// A page in vLLM's shape: help and type lines, histograms, `_created` gauges, two engines.
const VLLM_PAGE: &str = include_str!("../exposition/vllm.prom");
const SGLANG_PAGE: &str = include_str!("../exposition/sglang.prom");
const TRTLLM_PAGE: &str = include_str!("../exposition/trtllm-serve.prom");
const TRITON_TRTLLM_PAGE: &str = include_str!("../exposition/triton-tensorrt-llm.prom");
const TRITON_PAGE: &str = include_str!("../exposition/triton.prom");

fn engine(name: &str) -> Arc<EngineSeries> {
    Arc::clone(EngineTable::default().series(name).unwrap())
}

fn scraped(page: &str, name: &str) -> Scraped {
    read_signals(page.as_bytes(), &engine(name))
        .unwrap()
        .scraped
}

#[test]
fn a_page_of_each_engine_is_read() {
    let expected = |waiting, running, kv_usage, block_size, blocks| Scraped {
        waiting,
        running,
        kv_usage,
        block_size,
        blocks,
    };
    for (name, page, reading) in [
        ("vllm", VLLM_PAGE, expected(7, 12, 0.5, 16, 55_668)),
        ("sglang", SGLANG_PAGE, expected(3, 9, 0.25, 64, 7_411)),
        (
            "trtllm-serve",
            TRTLLM_PAGE,
            expected(2, 5, 0.375, 32, 4_096),
        ),
        (
            "triton-tensorrt-llm",
            TRITON_TRTLLM_PAGE,
            expected(4, 11, 0.125, 64, 1_024),
        ),
        ("triton", TRITON_PAGE, expected(6, 310, 0.0, 0, 0)),
    ] {
        assert_eq!(scraped(page, name), reading, "{name}");
    }
}

#[test]
fn the_page_of_another_engine_is_noticed() {
    let refused = |page: &str, name: &str| {
        read_signals(page.as_bytes(), &engine(name))
            .unwrap_err()
            .to_string()
    };
    let message = "the page has no series sglang:num_queue_reqs";
    assert_eq!(refused(VLLM_PAGE, "sglang"), message);
    let message = "the page has no series nv_trt_llm_request_metrics{request_type=\"waiting\"}";
    assert_eq!(refused(TRITON_PAGE, "triton-tensorrt-llm"), message);
}

#[test]
fn sglang_says_its_pages_in_labels_or_in_gauges() {
    let queues = "sglang:num_queue_reqs 1\nsglang:num_running_reqs 2\nsglang:token_usage 0.5\n";
    let page = format!("{queues}sglang:page_size{{tp_rank=\"0\"}} 16\nsglang:num_pages 100\n");
    let read = scraped(&page, "sglang");
    assert_eq!((read.block_size, read.blocks), (16, 100));
}

#[test]
fn absurd_values_stay_in_range() {
    let page = "\u{fffd}{ 1\nvllm:num_requests_waiting NaN\nvllm:num_requests_waiting 2\n\
        vllm:num_requests_running -5\nvllm:kv_cache_usage_perc 3\n\
        vllm:cache_config_info{block_size=\"-1\",num_gpu_blocks=\"None\"} 1\n";
    let read = scraped(page, "vllm");
    assert_eq!((read.waiting, read.running), (2, 0));
    assert_eq!((read.block_size, read.blocks), (0, 0));
    assert!((read.kv_usage - 1.0).abs() < f32::EPSILON);
}

fn adapters(lines: &str) -> Option<Adapters> {
    let page = format!(
        "vllm:num_requests_waiting 0\nvllm:num_requests_running 0\nvllm:kv_cache_usage_perc 0\n{lines}"
    );
    let reading = read_signals(page.as_bytes(), &engine("vllm")).unwrap();
    reading.adapters.map(|sample| sample.adapters())
}

#[test]
fn the_newest_list_of_adapters_counts() {
    let line = |running: &str, waiting: &str, at: &str| {
        format!(
            "vllm:lora_requests_info{{max_lora=\"4\",running_lora_adapters=\"{running}\",\
             waiting_lora_adapters=\"{waiting}\"}} {at}\n"
        )
    };
    let page = line("old", "", "1.7e9")
        + &line("sql, chat,", "math", "1.700000001e9")
        + &line("never", "", "NaN");
    assert_eq!(
        adapters(&page).unwrap(),
        Adapters {
            max: 4,
            running: vec!["sql".into(), "chat".into()],
            waiting: vec!["math".into()],
        }
    );
    assert_eq!(adapters(""), None);
    let same_time = line("first", "", "5") + &line("second", "", "5");
    assert_eq!(adapters(&same_time).unwrap().running, ["second".into()]);
    let odd = line(r#"a\"b,c\\d"#, "", "1");
    assert_eq!(
        adapters(&odd).unwrap().running,
        [r#"a"b"#.into(), r"c\d".into()]
    );
    let many = line(&"x,".repeat(ADAPTERS_MAX + 5), "", "1");
    assert_eq!(adapters(&many).unwrap().running.len(), ADAPTERS_MAX);
    let bare = "vllm:lora_requests_info 1\n";
    assert_eq!(adapters(bare).unwrap(), Adapters::default());
}

#[test]
fn the_fingerprint_tells_lists_apart_and_ignores_the_time() {
    let print = |list: &str, at: u32| {
        let page = format!("x{{running_lora_adapters=\"{list}\"}} {at}");
        let engine = EngineSeries::new("x").with(Signal::Adapters, SeriesSpec::named("x"));
        let reading = read_signals(page.as_bytes(), &engine).unwrap();
        reading.adapters.unwrap().fingerprint()
    };
    assert_eq!(print("a,b", 1), print("a,b", 2));
    assert_ne!(print("a,b", 1), print("a,c", 1));
}

/// One sample as the tests write it.
#[derive(Clone, Debug)]
struct Line {
    name: &'static str,
    labels: BTreeMap<String, String>,
    value: f64,
}

fn lines() -> impl Strategy<Value = Vec<Line>> {
    let name = proptest::sample::select(vec!["queue", "batch", "usage", "queue_total", "lora"]);
    let value = prop_oneof![
        0.0..100.0_f64,
        Just(f64::NAN),
        Just(f64::INFINITY),
        Just(-3.0)
    ];
    let label = proptest::sample::select(vec!["kind", "model", "x"]);
    let text = "[ab{}\",\\\\\n =#]{0,6}";
    let text = prop_oneof![Just("waiting".to_owned()), text.prop_map(|text| text)];
    let labels = proptest::collection::btree_map(label.prop_map(str::to_owned), text, 0..3);
    let line = (name, labels, value).prop_map(|(name, labels, value)| Line {
        name,
        labels,
        value,
    });
    proptest::collection::vec(line, 0..20)
}

fn written(lines: &[Line], spaced: bool) -> String {
    let escaped = |text: &str| {
        text.replace('\\', "\\\\")
            .replace('"', "\\\"")
            .replace('\n', "\\n")
    };
    let mut page = String::from("# HELP queue {\n");
    for line in lines {
        let labels: Vec<String> = line
            .labels
            .iter()
            .map(|(label, value)| format!("{label}=\"{}\"", escaped(value)))
            .collect();
        let gap = if spaced { " " } else { "" };
        let labels = labels.join(&format!(",{gap}"));
        page += line.name;
        if !labels.is_empty() || spaced {
            write!(page, "{gap}{{{gap}{labels}{gap}}}").unwrap();
        }
        writeln!(page, " {}", line.value).unwrap();
    }
    page
}

/// What the samples of a series add up to, and how many of them are numbers.
fn plainly(lines: &[Line], name: &str, labels: &[(&str, &str)]) -> (f64, usize) {
    let fits = |line: &&Line| {
        let has = |(label, value): &(&str, &str)| {
            line.labels.get(*label).is_some_and(|found| found == value)
        };
        line.name == name && line.value.is_finite() && labels.iter().all(has)
    };
    let values: Vec<f64> = lines.iter().filter(fits).map(|line| line.value).collect();
    (values.iter().sum(), values.len())
}

proptest! {
    /// Whatever stands in the labels, the scanner finds the samples that were written.
    #[test]
    fn the_scanner_agrees_with_what_was_written(lines in lines(), spaced: bool) {
        let engine = EngineSeries::new("x")
            .with(Signal::Waiting, SeriesSpec::named("queue").with("kind", "waiting"))
            .with(Signal::Running, SeriesSpec::named("queue"))
            .with(Signal::KvUsage, SeriesSpec::named("usage"));
        let page = written(&lines, spaced);
        let reading = read_signals(page.as_bytes(), &engine);
        let waiting = plainly(&lines, "queue", &[("kind", "waiting")]);
        let running = plainly(&lines, "queue", &[]);
        let usage = plainly(&lines, "usage", &[]);
        if [waiting, running, usage].iter().any(|(_, samples)| *samples == 0) {
            prop_assert!(reading.is_err());
        } else {
            let scraped = reading.unwrap().scraped;
            prop_assert_eq!(scraped.waiting, waiting.0 as u32);
            prop_assert_eq!(scraped.running, running.0 as u32);
            let mean = (usage.0 / usage.1 as f64).clamp(0.0, 1.0) as f32;
            prop_assert!((scraped.kv_usage - mean).abs() < 1e-6);
        }
    }

    /// Every label comes back as it was written.
    #[test]
    fn labels_come_back(lines in lines(), spaced: bool) {
        let page = written(&lines, spaced);
        let found: Vec<_> = samples(page.as_bytes()).collect();
        prop_assert_eq!(found.len(), lines.len());
        for (sample, line) in found.iter().zip(&lines) {
            prop_assert_eq!(sample.name, line.name.as_bytes());
            for (label, value) in &line.labels {
                prop_assert!(sample.label_is(label, value), "{} in {}", label, page);
            }
            prop_assert_eq!(sample.label("absent"), None);
        }
    }

    #[test]
    fn no_bytes_make_it_panic(page in proptest::collection::vec(any::<u8>(), 0..400)) {
        for name in ["vllm", "triton-tensorrt-llm"] {
            let _ = read_signals(&page, &engine(name));
        }
    }

    /// Pieces of the grammar in any order reach further than random bytes do.
    #[test]
    fn no_broken_page_makes_it_panic(pieces in proptest::collection::vec(
        proptest::sample::select(vec![
            "vllm:num_requests_waiting", "vllm:cache_config_info", "vllm:lora_requests_info",
            "block_size", "running_lora_adapters", "{", "}", "\"", "\\", "=", ",", " ", "\n", "1",
            "-1e999", "#",
        ]),
        0..60,
    )) {
        let page = pieces.concat();
        if let Ok(reading) = read_signals(page.as_bytes(), &engine("vllm")) {
            let _ = reading.adapters.map(|sample| sample.adapters());
        }
        for sample in samples(page.as_bytes()) {
            let _ = (sample.value(), sample.label("block_size"), sample.labels_text());
        }
    }
}
