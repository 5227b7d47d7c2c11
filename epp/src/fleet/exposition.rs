//! A zero-copy scanner of Prometheus text pages, and the few series that epp reads from them.
//!
//! A worker's page has some 200 series, mostly histogram buckets, and epp wants five of them twenty
//! times a second from every worker. So a line is cut at its name, and only lines of wanted names
//! are looked at any further; nothing is copied, nothing is allocated. The grammar of a sample is
//!
//! ```text
//! name [ "{" label "=" '"' escaped '"' [","] … "}" ] blank value [ blank timestamp ]
//! ```
//!
//! Lines that do not fit are skipped. Help, types and timestamps are ignored.

use pointsman_proto::series;

use super::live::Scraped;

/// One sample line, cut at its name. The rest is read when asked for.
#[derive(Clone, Copy, Debug)]
pub struct Sample<'a> {
    pub name: &'a [u8],
    rest: &'a [u8],
}

/// The samples of a page, in order.
pub fn samples(page: &[u8]) -> impl Iterator<Item = Sample<'_>> {
    page.split(|byte| *byte == b'\n').filter_map(|line| {
        let line = line.trim_ascii();
        if line.first().is_none_or(|first| *first == b'#') {
            return None;
        }
        let end = line
            .iter()
            .position(|byte| matches!(byte, b'{' | b' ' | b'\t'))?;
        let (name, rest) = line.split_at(end);
        Some(Sample { name, rest })
    })
}

impl<'a> Sample<'a> {
    /// The value; `None` where the line has none that reads as a number.
    pub fn value(&self) -> Option<f64> {
        let (_, after) = self.split_labels()?;
        let mut words = after
            .split(u8::is_ascii_whitespace)
            .filter(|word| !word.is_empty());
        let word = std::str::from_utf8(words.next()?).ok()?;
        word.parse().ok()
    }

    /// A label's value as it is written, escapes included; `None` where the line does not have the
    /// label.
    pub fn label(&self, name: &str) -> Option<&'a str> {
        let (mut labels, _) = self.split_labels()?;
        loop {
            let equals = labels.iter().position(|byte| *byte == b'=')?;
            let (found, rest) = labels.split_at(equals);
            let quoted = rest.get(1..)?.trim_ascii_start().strip_prefix(b"\"")?;
            let end = quoted_length(quoted)?;
            if found.trim_ascii() == name.as_bytes() {
                return std::str::from_utf8(&quoted[..end]).ok();
            }
            labels = quoted.get(end + 1..)?.trim_ascii_start();
            labels = labels.strip_prefix(b",").unwrap_or(labels);
        }
    }

    /// What stands between the braces, and what follows them.
    fn split_labels(&self) -> Option<(&'a [u8], &'a [u8])> {
        let Some(inner) = self.rest.strip_prefix(b"{") else {
            return Some((&[], self.rest));
        };
        let mut at = 0;
        loop {
            match inner.get(at)? {
                b'}' => return Some((&inner[..at], &inner[at + 1..])),
                b'"' => at += 1 + quoted_length(&inner[at + 1..])? + 1,
                _ => at += 1,
            }
        }
    }
}

/// Bytes before the quote that ends a label value.
fn quoted_length(text: &[u8]) -> Option<usize> {
    let mut at = 0;
    loop {
        match text.get(at)? {
            b'"' => return Some(at),
            b'\\' => at += 2,
            _ => at += 1,
        }
    }
}

/// The series of one kind of engine. The field chooses the kind by the label
/// `llm-d.ai/engine-type`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct EngineSeries {
    /// The label's value.
    pub engine: &'static str,
    pub waiting: &'static str,
    pub running: &'static str,
    pub kv_usage: &'static str,
    pub cache_info: &'static str,
    /// Labels of `cache_info`.
    pub block_size_label: &'static str,
    pub blocks_label: &'static str,
}

/// The pod label that names the engine.
pub const ENGINE_TYPE_LABEL: &str = "llm-d.ai/engine-type";

/// vLLM, and our own worker; the default.
pub const VLLM: EngineSeries = EngineSeries {
    engine: "vllm",
    waiting: series::NUM_REQUESTS_WAITING,
    running: series::NUM_REQUESTS_RUNNING,
    kv_usage: series::KV_CACHE_USAGE_PERC,
    cache_info: series::CACHE_CONFIG_INFO,
    block_size_label: series::BLOCK_SIZE,
    blocks_label: series::NUM_GPU_BLOCKS,
};

/// SGLang.
pub const SGLANG: EngineSeries = EngineSeries {
    engine: "sglang",
    waiting: "sglang:num_queue_reqs",
    running: "sglang:num_running_reqs",
    kv_usage: "sglang:token_usage",
    cache_info: "sglang:cache_config_info",
    block_size_label: "page_size",
    blocks_label: "num_pages",
};

/// The series of the engine that a label names; `None` for an engine that is not known.
pub fn engine_series(engine: Option<&str>) -> Option<&'static EngineSeries> {
    let engine = engine.unwrap_or(VLLM.engine);
    [&VLLM, &SGLANG]
        .into_iter()
        .find(|series| series.engine == engine)
}

/// A page that is not that of the expected engine.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("the page has no series {0}")]
pub struct MissingSeries(pub &'static str);

/// Reads an endpoint's signals from a page.
///
/// A page may hold several engines (data-parallel ranks) and models. Counts are summed over them,
/// as they share the endpoint; usage is their mean. Cache information is optional: usage and queues
/// are of use without it.
pub fn read_signals(page: &[u8], series: &EngineSeries) -> Result<Scraped, MissingSeries> {
    let mut waiting = Gauge::default();
    let mut running = Gauge::default();
    let mut kv_usage = Gauge::default();
    let mut scraped = Scraped::default();
    for sample in samples(page) {
        if sample.name == series.waiting.as_bytes() {
            waiting.add(&sample);
        } else if sample.name == series.running.as_bytes() {
            running.add(&sample);
        } else if sample.name == series.kv_usage.as_bytes() {
            kv_usage.add(&sample);
        } else if sample.name == series.cache_info.as_bytes() {
            let number = |label| {
                sample
                    .label(label)
                    .and_then(|text| text.parse::<u32>().ok())
            };
            scraped.block_size = number(series.block_size_label).unwrap_or(scraped.block_size);
            let blocks = number(series.blocks_label).unwrap_or(0);
            scraped.blocks = scraped.blocks.saturating_add(blocks);
        }
    }
    let present = |gauge: Gauge, name| {
        if gauge.samples > 0 {
            Ok(gauge)
        } else {
            Err(MissingSeries(name))
        }
    };
    // A float converts to the nearest u32, so that a negative or absurd gauge stays in range.
    scraped.waiting = present(waiting, series.waiting)?.sum as u32;
    scraped.running = present(running, series.running)?.sum as u32;
    let kv_usage = present(kv_usage, series.kv_usage)?;
    scraped.kv_usage = (kv_usage.sum / f64::from(kv_usage.samples)).clamp(0.0, 1.0) as f32;
    Ok(scraped)
}

/// Sum and number of the samples of one gauge. What is not a number is left out.
#[derive(Clone, Copy, Default)]
struct Gauge {
    sum: f64,
    samples: u32,
}

impl Gauge {
    fn add(&mut self, sample: &Sample<'_>) {
        if let Some(value) = sample.value().filter(|value| value.is_finite()) {
            self.sum += value;
            self.samples += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A page in vLLM's shape: help and type lines, histograms, `_created` gauges, two engines.
    const PAGE: &str = include_str!("exposition/vllm.prom");

    #[test]
    fn a_page_of_vllm_is_read() {
        let scraped = read_signals(PAGE.as_bytes(), &VLLM).unwrap();
        assert_eq!(
            scraped,
            Scraped {
                waiting: 7,
                running: 12,
                kv_usage: 0.5,
                block_size: 16,
                blocks: 55_668,
            }
        );
    }

    #[test]
    fn an_engine_is_chosen_by_its_label_and_the_wrong_page_is_noticed() {
        assert_eq!(engine_series(None), Some(&VLLM));
        assert_eq!(engine_series(Some("sglang")), Some(&SGLANG));
        assert_eq!(engine_series(Some("other")), None);
        assert_eq!(
            read_signals(PAGE.as_bytes(), &SGLANG),
            Err(MissingSeries("sglang:num_queue_reqs"))
        );
        let page = "sglang:num_queue_reqs{model_name=\"m\"} 3.0\n\
                    sglang:num_running_reqs{model_name=\"m\"} 4.0\n\
                    sglang:token_usage{model_name=\"m\"} 0.25\n\
                    sglang:cache_config_info{page_size=\"64\",num_pages=\"10\"} 1.0\n";
        let scraped = read_signals(page.as_bytes(), &SGLANG).unwrap();
        assert_eq!((scraped.waiting, scraped.running), (3, 4));
        assert_eq!((scraped.block_size, scraped.blocks), (64, 10));
    }

    #[test]
    fn labels_may_hold_anything_that_is_quoted() {
        let page = br#"a_series { tricky = "},\"x=\\" , other="2",} 4.5 1700000000"#;
        let sample = samples(page).next().unwrap();
        assert_eq!(sample.name, b"a_series");
        let page = br#"a_series{tricky="},\"x=\\",other="2",} 4.5 1700000000"#;
        let sample = samples(page).next().unwrap();
        assert_eq!(sample.label("tricky"), Some(r#"},\"x=\\"#));
        assert_eq!(sample.label("other"), Some("2"));
        assert_eq!(sample.label("x"), None);
        assert_eq!(sample.value(), Some(4.5));
    }

    #[test]
    fn values_of_every_form_are_read_and_garbage_is_skipped() {
        let value = |line: &str| {
            samples(line.as_bytes())
                .next()
                .and_then(|sample| sample.value())
        };
        assert_eq!(value("a 1"), Some(1.0));
        assert_eq!(value("a\t1e3 99"), Some(1_000.0));
        assert_eq!(value("a{} -2.5"), Some(-2.5));
        assert_eq!(value("a +Inf"), Some(f64::INFINITY));
        assert!(value("a NaN").unwrap().is_nan());
        for line in [
            "a",
            "a ",
            "a x",
            "a{b=\"c\" 1",
            "a{b=\"c} 1",
            "# a 1",
            "{} ",
            "",
        ] {
            assert_eq!(value(line), None, "{line:?}");
        }
        let page = b"\xff\xfe{ 1\nvllm:num_requests_waiting NaN\nvllm:num_requests_waiting 2\n\
            vllm:num_requests_running -5\nvllm:kv_cache_usage_perc 3\n";
        let scraped = read_signals(page, &VLLM).unwrap();
        assert_eq!((scraped.waiting, scraped.running), (2, 0));
        assert!((scraped.kv_usage - 1.0).abs() < f32::EPSILON);
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(page in proptest::collection::vec(any::<u8>(), 0..400)) {
            let _ = read_signals(&page, &VLLM);
        }

        /// Pieces of the grammar in any order reach further than random bytes do.
        #[test]
        fn no_broken_page_makes_it_panic(pieces in proptest::collection::vec(
            proptest::sample::select(vec![
                "vllm:num_requests_waiting", "vllm:cache_config_info", "block_size", "num_gpu_blocks",
                "{", "}", "\"", "\\", "=", ",", " ", "\n", "1", "-1e999", "#",
            ]),
            0..60,
        )) {
            let page = pieces.concat();
            let _ = read_signals(page.as_bytes(), &VLLM);
            for sample in samples(page.as_bytes()) {
                let _ = (sample.value(), sample.label("block_size"));
            }
        }
    }
}
