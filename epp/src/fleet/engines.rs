//! The kinds of engines: under which names each one exports the signals that epp reads.
//!
//! The field tells an endpoint's engine by a label. The names of five engines are built in; a
//! configuration may add engines and replace the built-in ones, and the field's older flags rename
//! single series of the default one.

use std::collections::BTreeMap;
use std::sync::Arc;

use pointsman_proto::series;

use super::series_spec::{SeriesSpec, SpecError};

/// The label that names an endpoint's engine.
pub const ENGINE_TYPE_LABEL: &str = "llm-d.ai/engine-type";
/// What the label was called before; the present one goes before it.
pub const LEGACY_ENGINE_TYPE_LABEL: &str = "inference.networking.k8s.io/engine-type";
/// The engine of endpoints that do not name one: vLLM, which our own worker follows.
pub const DEFAULT_ENGINE: &str = "vllm";

/// What a series says about an endpoint.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Signal {
    /// Requests in the queue.
    Waiting,
    /// Requests in the batch.
    Running,
    /// Share of KV blocks in use.
    KvUsage,
    /// The LoRA adapters, in labels; the value is the time of the last change.
    Adapters,
    /// Block size and block count, in labels.
    CacheInfo,
    /// Tokens per block.
    BlockSize,
    /// Number of blocks.
    Blocks,
}

/// How many kinds of signals there are.
pub(super) const SIGNALS: usize = 7;

/// The series of one kind of engine.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct EngineSeries {
    /// The value of the engine label.
    pub engine: Box<str>,
    wanted: Vec<(Signal, SeriesSpec)>,
    /// Labels of the series of [`Signal::CacheInfo`].
    pub block_size_label: Box<str>,
    pub blocks_label: Box<str>,
}

impl EngineSeries {
    /// An engine of which nothing can be read yet.
    pub fn new(engine: &str) -> Self {
        Self {
            engine: engine.into(),
            wanted: Vec::new(),
            block_size_label: series::BLOCK_SIZE.into(),
            blocks_label: series::NUM_GPU_BLOCKS.into(),
        }
    }

    /// The same engine with the series of one signal set, or with the signal gone.
    #[must_use]
    pub fn with(mut self, signal: Signal, spec: impl Into<Option<SeriesSpec>>) -> Self {
        self.wanted.retain(|(known, _)| *known != signal);
        self.wanted.extend(spec.into().map(|spec| (signal, spec)));
        self
    }

    /// The series of a signal; `None` where the engine does not have it.
    pub fn spec(&self, signal: Signal) -> Option<&SeriesSpec> {
        let found = self.wanted.iter().find(|(known, _)| *known == signal);
        found.map(|(_, spec)| spec)
    }

    /// Every series that is read. Two signals may share a name and differ in labels.
    pub fn wanted(&self) -> &[(Signal, SeriesSpec)] {
        &self.wanted
    }
}

/// The engines of a pool.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct EngineTable {
    label: String,
    default_engine: String,
    engines: Vec<Arc<EngineSeries>>,
}

/// Why a table was refused.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum EngineError {
    #[error("there is no engine {0:?} that could be the default")]
    NoDefault(String),
    #[error("the name of an engine must not be empty")]
    NoName,
    #[error("engine {0:?} is configured twice")]
    Twice(String),
}

impl Default for EngineTable {
    fn default() -> Self {
        Self {
            label: ENGINE_TYPE_LABEL.to_owned(),
            default_engine: DEFAULT_ENGINE.to_owned(),
            engines: built_in().into_iter().map(Arc::new).collect(),
        }
    }
}

impl EngineTable {
    /// The built-in engines and those given, which replace built-in ones of the same name.
    pub fn new(
        label: &str,
        default_engine: &str,
        given: Vec<EngineSeries>,
    ) -> Result<Self, EngineError> {
        let mut engines: Vec<Arc<EngineSeries>> = Vec::new();
        for engine in given {
            if engine.engine.is_empty() {
                return Err(EngineError::NoName);
            }
            if engines.iter().any(|known| known.engine == engine.engine) {
                return Err(EngineError::Twice(engine.engine.into()));
            }
            engines.push(Arc::new(engine));
        }
        for engine in built_in() {
            if engines.iter().all(|known| known.engine != engine.engine) {
                engines.push(Arc::new(engine));
            }
        }
        if engines.iter().all(|known| *known.engine != *default_engine) {
            return Err(EngineError::NoDefault(default_engine.to_owned()));
        }
        Ok(Self {
            label: label.to_owned(),
            default_engine: default_engine.to_owned(),
            engines,
        })
    }

    /// What an endpoint's labels say its engine is; the default engine where they say nothing.
    pub fn engine<'a>(&'a self, labels: &'a BTreeMap<String, String>) -> &'a str {
        let of = |label: &str| labels.get(label).filter(|engine| !engine.is_empty());
        of(&self.label)
            .or_else(|| of(LEGACY_ENGINE_TYPE_LABEL))
            .unwrap_or(&self.default_engine)
    }

    /// The series of an engine; `None` for one that is not known.
    pub fn series(&self, engine: &str) -> Option<&Arc<EngineSeries>> {
        self.engines.iter().find(|known| *known.engine == *engine)
    }

    /// Renames series of the default engine, as the field's flags `--total-queued-requests-metric`
    /// and so on do.
    pub fn rename(&mut self, names: &SeriesNames) -> Result<(), SpecError> {
        let default_engine = &self.default_engine;
        let found = self
            .engines
            .iter_mut()
            .find(|known| *known.engine == **default_engine);
        let Some(engine) = found else {
            return Ok(());
        };
        let mut renamed = EngineSeries::clone(engine);
        for (signal, name) in [
            (Signal::Waiting, &names.waiting),
            (Signal::Running, &names.running),
            (Signal::KvUsage, &names.kv_usage),
            (Signal::Adapters, &names.adapters),
            (Signal::CacheInfo, &names.cache_info),
        ] {
            if let Some(name) = name {
                renamed = renamed.with(signal, SeriesSpec::optional(name)?);
            }
        }
        *engine = Arc::new(renamed);
        Ok(())
    }
}

/// Series of the default engine under other names: `None` leaves one as it is, an empty text
/// switches it off.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct SeriesNames {
    pub waiting: Option<String>,
    pub running: Option<String>,
    pub kv_usage: Option<String>,
    pub adapters: Option<String>,
    pub cache_info: Option<String>,
}

/// The engines whose names everybody knows.
fn built_in() -> [EngineSeries; 5] {
    use Signal::{Adapters, BlockSize, Blocks, CacheInfo, KvUsage, Running, Waiting};
    let engine = |name: &str, series: &[(Signal, &str)]| {
        let empty = EngineSeries::new(name);
        let with = |engine: EngineSeries, (signal, name): &(Signal, &str)| {
            engine.with(*signal, SeriesSpec::named(name))
        };
        series.iter().fold(empty, with)
    };
    let vllm = [
        (Waiting, series::NUM_REQUESTS_WAITING),
        (Running, series::NUM_REQUESTS_RUNNING),
        (KvUsage, series::KV_CACHE_USAGE_PERC),
        (Adapters, series::LORA_REQUESTS_INFO),
        (CacheInfo, series::CACHE_CONFIG_INFO),
    ];
    // Its block size and count were labels first and are gauges of their own in later versions.
    let sglang = [
        (Waiting, "sglang:num_queue_reqs"),
        (Running, "sglang:num_running_reqs"),
        (KvUsage, "sglang:token_usage"),
        (CacheInfo, "sglang:cache_config_info"),
        (BlockSize, "sglang:page_size"),
        (Blocks, "sglang:num_pages"),
    ];
    let trtllm = [
        (Waiting, "trtllm_num_requests_waiting"),
        (Running, "trtllm_num_requests_running"),
        (KvUsage, "trtllm_kv_cache_utilization"),
        (BlockSize, "trtllm_kv_cache_tokens_per_block"),
        (Blocks, "trtllm_kv_cache_max_blocks"),
    ];
    let requests =
        |kind| SeriesSpec::named("nv_trt_llm_request_metrics").with("request_type", kind);
    let blocks = |kind| {
        SeriesSpec::named("nv_trt_llm_kv_cache_block_metrics").with("kv_cache_block_type", kind)
    };
    // Triton without an LLM backend has no KV cache.
    let triton = [
        (Waiting, "nv_inference_pending_request_count"),
        (Running, "nv_inference_exec_count"),
    ];
    [
        engine(DEFAULT_ENGINE, &vllm),
        EngineSeries {
            block_size_label: "page_size".into(),
            blocks_label: "num_pages".into(),
            ..engine("sglang", &sglang)
        },
        engine("trtllm-serve", &trtllm),
        EngineSeries::new("triton-tensorrt-llm")
            .with(Waiting, requests("waiting"))
            .with(Running, requests("scheduled"))
            .with(KvUsage, blocks("fraction"))
            .with(BlockSize, blocks("tokens_per"))
            .with(Blocks, blocks("max")),
        engine("triton", &triton),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        let owned = |(key, value): &(&str, &str)| ((*key).to_owned(), (*value).to_owned());
        pairs.iter().map(owned).collect()
    }

    #[test]
    fn the_label_chooses_the_engine_and_its_older_name_still_does() {
        let table = EngineTable::default();
        let engine = |pairs: &[(&str, &str)]| table.engine(&labels(pairs)).to_owned();
        assert_eq!(engine(&[]), "vllm");
        assert_eq!(engine(&[(ENGINE_TYPE_LABEL, "")]), "vllm");
        assert_eq!(engine(&[(LEGACY_ENGINE_TYPE_LABEL, "triton")]), "triton");
        let both = [
            (LEGACY_ENGINE_TYPE_LABEL, "triton"),
            (ENGINE_TYPE_LABEL, "sglang"),
        ];
        assert_eq!(engine(&both), "sglang");
        assert!(table.series("other").is_none());
        for known in [
            "vllm",
            "sglang",
            "trtllm-serve",
            "triton-tensorrt-llm",
            "triton",
        ] {
            assert!(table.series(known).is_some(), "{known}");
        }
    }

    #[test]
    fn configured_engines_replace_built_in_ones() {
        let mine = EngineSeries::new("vllm").with(Signal::Waiting, SeriesSpec::named("queue"));
        let table =
            EngineTable::new("engine", "mine", vec![mine, EngineSeries::new("mine")]).unwrap();
        assert_eq!(table.engine(&BTreeMap::new()), "mine");
        assert_eq!(table.engine(&labels(&[("engine", "vllm")])), "vllm");
        let vllm = table.series("vllm").unwrap();
        assert_eq!(
            vllm.spec(Signal::Waiting),
            Some(&SeriesSpec::named("queue"))
        );
        assert_eq!(vllm.spec(Signal::Running), None);
        assert!(table.series("sglang").is_some());
        let refused = |default: &str, engines: &[&str]| {
            let engines = engines.iter().map(|name| EngineSeries::new(name)).collect();
            EngineTable::new("engine", default, engines).unwrap_err()
        };
        assert_eq!(
            refused("nobody", &[]),
            EngineError::NoDefault("nobody".to_owned())
        );
        assert_eq!(
            refused("vllm", &["a", "a"]),
            EngineError::Twice("a".to_owned())
        );
        assert_eq!(refused("vllm", &[""]), EngineError::NoName);
    }

    #[test]
    fn flags_rename_the_series_of_the_default_engine() {
        let mut table = EngineTable::default();
        let names = SeriesNames {
            waiting: Some("mine{kind=\"waiting\"}".to_owned()),
            adapters: Some(String::new()),
            ..SeriesNames::default()
        };
        table.rename(&names).unwrap();
        let vllm = table.series("vllm").unwrap();
        let mine = SeriesSpec::named("mine").with("kind", "waiting");
        assert_eq!(vllm.spec(Signal::Waiting), Some(&mine));
        assert_eq!(vllm.spec(Signal::Adapters), None);
        assert!(vllm.spec(Signal::Running).is_some());
        let wrong = SeriesNames {
            running: Some("rate(x)".to_owned()),
            ..SeriesNames::default()
        };
        assert!(table.rename(&wrong).is_err());
    }
}
