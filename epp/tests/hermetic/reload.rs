//! A configuration and resources that change while the picker runs, on the way that the program
//! takes: an assembled pool whose tasks follow the files.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use clap::Parser;
use pointsman_epp::clock::Clock;
use pointsman_epp::config::{Flags, Settings};
use pointsman_epp::observe::Metrics;
use pointsman_epp::pipeline::assembly::{self, Counts, Process, Reads};
use pointsman_epp::pipeline::catalogue::catalogue;
use pointsman_epp::pipeline::{Options, Pipeline, Pools, Shared};
use tempfile::TempDir;
use tokio::task::JoinSet;

use super::support::{Picker, picker_of_pipeline};

const NO_JSON: &str = "no JSON at all";
const BODY: &str = r#"{"model":"m","prompt":"hello"}"#;

/// A configuration with this parser.
fn config(parser: &str) -> String {
    format!(
        "apiVersion: llm-d.ai/v1alpha1
kind: EndpointPickerConfig
plugins:
- type: queue-scorer
- type: {parser}
schedulingProfiles:
- name: default
  plugins: [{{pluginRef: queue-scorer}}]
requestHandler: {{parsers: [{{pluginRef: {parser}}}]}}
"
    )
}

fn objective(priority: i32) -> String {
    format!(
        "{{apiVersion: llm-d.ai/v1alpha2, kind: InferenceObjective, metadata: {{name: gold}}, spec: {{priority: {priority}, poolRef: {{name: default}}}}}}"
    )
}

struct Followed {
    picker: Picker,
    reads: Reads,
    folder: TempDir,
    _tasks: JoinSet<()>,
}

impl Followed {
    /// A picker that follows `config.yaml` and `resources.yaml` of a folder.
    async fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name).display().to_string();
        std::fs::write(path("config.yaml"), config("openai-parser")).unwrap();
        std::fs::write(path("resources.yaml"), objective(3)).unwrap();
        let flags = Flags::try_parse_from([
            "epp",
            // Nobody listens there, so that every worker stays as likely as any other.
            "--endpoint=127.0.0.1:1",
            &format!("--config-file={}", path("config.yaml")),
            &format!("--resources-file={}", path("resources.yaml")),
        ]);
        let settings = Settings::try_from(flags.unwrap()).unwrap();
        let (metrics, clock) = (Arc::new(Metrics::new()), Clock::monotonic());
        let process = Process {
            settings: &settings,
            catalogue: &Arc::new(catalogue()),
            metrics: &metrics,
            clock: &clock,
            counts: &Counts::default(),
        };
        let built = assembly::assemble(&process, &settings.pools[0]).unwrap();
        let mut tasks = JoinSet::new();
        for task in built.tasks {
            tasks.spawn(task);
        }
        let shared = Shared {
            metrics,
            decisions: Arc::default(),
            spans: None,
            clock,
            options: Options {
                use_subset_hint: true,
                emit_scores: false,
                debug_header: None,
                seed: 7,
            },
        };
        let pools = Pools::new([(built.pool, Vec::new(), true)]);
        Self {
            picker: picker_of_pipeline(Pipeline::new(shared, pools)).await,
            reads: built.reads,
            folder,
            _tasks: tasks,
        }
    }

    /// Puts a new file in the place of the old one, so that nobody reads half of it.
    fn write(&self, name: &str, text: &str) {
        let folder = self.folder.path();
        std::fs::write(folder.join("new"), text).unwrap();
        std::fs::rename(folder.join("new"), folder.join(name)).unwrap();
    }

    /// Loads taken and refused.
    fn counts(&self) -> (u64, u64) {
        let (_, state) = self.reads.config.as_ref().unwrap();
        (state.loaded.load(Relaxed), state.refused.load(Relaxed))
    }

    async fn until_counts(&self, expected: (u64, u64)) {
        self.picker.until(|_| self.counts() == expected).await;
    }

    /// Whether a body that is no JSON is routed, which the passthrough parser does only.
    async fn passes_anything(&self) -> bool {
        let mut stream = self.picker.stream().await;
        stream.post("/v1/completions", NO_JSON).await;
        let answer = stream.answer().await;
        answer.dynamic_metadata.is_some()
    }
}

#[tokio::test]
async fn good_configuration_is_taken_and_a_bad_one_refused_while_the_old_one_stays() {
    let followed = Followed::start().await;
    assert!(!followed.passes_anything().await);

    followed.write("config.yaml", &config("passthrough-parser"));
    followed.until_counts((1, 0)).await;
    assert!(followed.passes_anything().await);

    let wrong = config("openai-parser").replace("- type: queue-scorer", "- type: queue-scorre");
    followed.write("config.yaml", &wrong);
    followed.until_counts((1, 1)).await;
    assert!(followed.passes_anything().await, "what was good goes on");
    let (path, state) = followed.reads.config.as_ref().unwrap();
    let error = state.last_error().expect("the page says why");
    let place = format!("{}:4:", path.display());
    assert!(error.contains(&place), "{error}");
    assert!(error.contains(r#"did you mean "queue-scorer"?"#), "{error}");

    followed.write("config.yaml", &config("openai-parser"));
    followed.until_counts((2, 1)).await;
    assert!(!followed.passes_anything().await);
    assert_eq!(state.last_error(), None);
    for (result, count) in [("applied", 2), ("refused", 1)] {
        let line = format!("pointsman_config_reloads_total{{result=\"{result}\"}} {count}");
        followed.picker.until_metric(&line).await;
    }
}

#[tokio::test]
async fn request_keeps_the_configuration_that_it_began_with() {
    let followed = Followed::start().await;
    let mut stream = followed.picker.stream().await;
    let head = [(":method", "POST"), (":path", "/v1/completions")];
    stream.request(&head, false).await;
    stream.body(BODY.as_bytes(), true).await;
    stream.picked().await;
    stream.forwarded_body().await;
    followed.write("config.yaml", &config("passthrough-parser"));
    followed.until_counts((1, 0)).await;
    stream
        .served_with(br#"{"usage":{"prompt_tokens":3,"completion_tokens":4}}"#)
        .await;
    followed
        .picker
        .until_metric(
            r#"llm_d_epp_request_input_tokens_sum{model_name="m",target_model_name="m",fairness_id="default-flow",priority="0"} 3"#,
        )
        .await;
    followed.picker.until_in_flight(&[0]).await;
}

#[tokio::test]
async fn objectives_follow_their_file_and_a_wrong_file_changes_nothing() {
    let followed = Followed::start().await;
    let rules = || followed.picker.pool().rules.load_full();
    let priority = || {
        let rules = rules();
        rules
            .objectives
            .priority(|name| (name == "x-llm-d-inference-objective").then_some("gold"))
    };
    assert_eq!(priority(), 3);
    followed.write("resources.yaml", &objective(8));
    followed.picker.until(|_| priority() == 8).await;
    followed.write(
        "resources.yaml",
        &objective(9).replace("priority", "prority"),
    );
    // A good configuration after it shows that the files were looked at again.
    followed.write("config.yaml", &config("passthrough-parser"));
    followed.until_counts((1, 0)).await;
    assert_eq!(priority(), 8);
    let mut stream = followed.picker.stream().await;
    let headers = [("x-llm-d-inference-objective", "gold")];
    stream
        .post_in_pieces("/v1/completions", &headers, &[BODY.as_bytes()])
        .await;
    stream.picked().await;
    let decisions = followed
        .picker
        .pipeline()
        .shared()
        .decisions
        .latest(1, None);
    assert_eq!(decisions[0].record.priority, 8);
}
