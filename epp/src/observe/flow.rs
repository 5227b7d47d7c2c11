//! The state of flow control, written out at the moment of a scrape.
//!
//! A queue that was collected takes its series along, because they are read off the queues and live
//! nowhere else.

use super::exposition::{Labels, Page, Sample};
use super::family::{Family, Legacy, was};

/// What waits, and how full it is.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct FlowView {
    pub pools: Vec<PoolFlow>,
    /// Endpoints without signals, or with old ones, by the detector that met them.
    pub stale_endpoints: Vec<(String, usize)>,
    /// Only of the fairness policy that knows programs.
    pub programs: Option<ProgramsView>,
}

/// The queues of one pool.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct PoolFlow {
    pub pool: String,
    pub queues: Vec<QueueView>,
    pub bands: Vec<BandView>,
    /// Share in use of the limit over all bands; `None` where there is no limit.
    pub requests_utilization: Option<f64>,
    pub bytes_utilization: Option<f64>,
    /// By stage: `prefill`, `decode`, `effective`; 1 = full.
    pub saturation: Vec<(&'static str, f64)>,
}

/// Requests that wait under one set of labels. The caller bounds how many there are.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct QueueView {
    pub fairness_id: String,
    pub priority: i32,
    pub model: String,
    pub target_model: String,
    pub requests: u64,
    pub bytes: u64,
}

/// One priority band.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct BandView {
    pub priority: i32,
    /// Shares in use of its own limits, 0 to 1.
    pub requests_utilization: f64,
    pub bytes_utilization: f64,
}

/// How fair the programs are treated.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct ProgramsView {
    /// Jain's index: 1 = all alike.
    pub jains_index: f64,
    /// Program, mean wait in milliseconds, tokens served.
    pub programs: Vec<(String, f64, f64)>,
}

const OF_QUEUE: &[&str] = &[
    "fairness_id",
    "priority",
    "inference_pool",
    "model_name",
    "target_model_name",
];
const QUEUE_WAS: &[(&str, &str)] = &[
    ("fairness_id", "fairness_id"),
    ("priority", "priority"),
    ("inference_pool", "inference_pool"),
    ("model_name", "model_name"),
    ("target_model_name", "target_model_name"),
];
const OF_BAND: &[&str] = &["priority", "inference_pool"];
const OF_POOL: &[&str] = &["inference_pool"];

const QUEUE_SIZE: Family = gauge(
    "llm_d_epp_flow_control_queue_size",
    OF_QUEUE,
    "Requests that wait.",
    &[was(
        "inference_extension_flow_control_queue_size",
        QUEUE_WAS,
    )],
);
const QUEUE_BYTES: Family = gauge(
    "llm_d_epp_flow_control_queue_bytes",
    OF_QUEUE,
    "Bytes of the requests that wait.",
    &[was(
        "inference_extension_flow_control_queue_bytes",
        QUEUE_WAS,
    )],
);
/// The earlier name has no stage: its value is the largest, which is what gates.
const SATURATION: Family = gauge(
    "llm_d_epp_flow_control_pool_saturation",
    &["inference_pool", "stage"],
    "How loaded a pool is by stage; 1 and above hold requests back.",
    &[Legacy {
        name: "inference_extension_flow_control_pool_saturation",
        labels: &[("inference_pool", "inference_pool")],
        merge: super::family::Merge::Largest,
    }],
);
const STALE: Family = gauge(
    "llm_d_epp_flow_control_stale_endpoints",
    &["detector"],
    "Endpoints without signals, or with old ones.",
    &[],
);
const BAND_REQUESTS: Family = gauge(
    "llm_d_epp_flow_control_capacity_utilization_requests",
    OF_BAND,
    "Share of a band's limit of requests in use.",
    &[],
);
const BAND_BYTES: Family = gauge(
    "llm_d_epp_flow_control_capacity_utilization_bytes",
    OF_BAND,
    "Share of a band's limit of bytes in use.",
    &[],
);
const POOL_REQUESTS: Family = gauge(
    "llm_d_epp_flow_control_global_capacity_utilization_requests",
    OF_POOL,
    "Share of the limit of requests over all bands in use.",
    &[],
);
const POOL_BYTES: Family = gauge(
    "llm_d_epp_flow_control_global_capacity_utilization_bytes",
    OF_POOL,
    "Share of the limit of bytes over all bands in use.",
    &[],
);
const JAIN: Family = gauge(
    "llm_d_epp_program_aware_jains_fairness_index",
    &[],
    "How alike the programs are treated; 1 is alike.",
    &[],
);
const PROGRAM_WAIT: Family = gauge(
    "llm_d_epp_program_aware_avg_wait_time_milliseconds",
    &["program_id"],
    "Mean wait of a program's requests, in milliseconds.",
    &[],
);
const PROGRAM_TOKENS: Family = gauge(
    "llm_d_epp_program_aware_attained_service_tokens",
    &["program_id"],
    "Tokens served to a program, old ones counting less.",
    &[],
);

/// Writes the state of flow control.
pub fn render(view: &FlowView, page: &mut Page) {
    queues(view, page);
    capacity(view, page);
    let mut stages = Vec::new();
    for pool in &view.pools {
        for (stage, value) in &pool.saturation {
            let labels = Labels::new(SATURATION.labels, &[&pool.pool, stage]);
            stages.push((labels, *value));
        }
    }
    numbers(page, &SATURATION, &stages);
    let stale = view.stale_endpoints.iter();
    let stale: Rows = stale
        .map(|(detector, count)| (Labels::new(STALE.labels, &[detector]), *count as f64))
        .collect();
    numbers(page, &STALE, &stale);
    programs(view.programs.as_ref(), page);
}

type Rows = Vec<(Labels, f64)>;

fn queues(view: &FlowView, page: &mut Page) {
    let (mut sizes, mut bytes): (Rows, Rows) = Default::default();
    for pool in &view.pools {
        for queue in &pool.queues {
            let labels = Labels::new(
                OF_QUEUE,
                &[
                    &queue.fairness_id,
                    &queue.priority.to_string(),
                    &pool.pool,
                    &queue.model,
                    &queue.target_model,
                ],
            );
            sizes.push((labels.clone(), queue.requests as f64));
            bytes.push((labels, queue.bytes as f64));
        }
    }
    numbers(page, &QUEUE_SIZE, &sizes);
    numbers(page, &QUEUE_BYTES, &bytes);
}

fn capacity(view: &FlowView, page: &mut Page) {
    let (mut band_requests, mut band_bytes): (Rows, Rows) = Default::default();
    let (mut pool_requests, mut pool_bytes): (Rows, Rows) = Default::default();
    for pool in &view.pools {
        for band in &pool.bands {
            let labels = Labels::new(OF_BAND, &[&band.priority.to_string(), &pool.pool]);
            band_requests.push((labels.clone(), band.requests_utilization));
            band_bytes.push((labels, band.bytes_utilization));
        }
        let labels = Labels::new(OF_POOL, &[&pool.pool]);
        pool_requests.extend(
            pool.requests_utilization
                .map(|share| (labels.clone(), share)),
        );
        pool_bytes.extend(pool.bytes_utilization.map(|share| (labels, share)));
    }
    numbers(page, &BAND_REQUESTS, &band_requests);
    numbers(page, &BAND_BYTES, &band_bytes);
    numbers(page, &POOL_REQUESTS, &pool_requests);
    numbers(page, &POOL_BYTES, &pool_bytes);
}

fn programs(view: Option<&ProgramsView>, page: &mut Page) {
    let index = view.map(|view| (Labels::default(), view.jains_index));
    numbers(page, &JAIN, &Rows::from_iter(index));
    let (mut waits, mut tokens): (Rows, Rows) = Default::default();
    for (program, wait_ms, served) in view.map_or(&[][..], |view| &view.programs) {
        let labels = Labels::new(PROGRAM_WAIT.labels, &[program]);
        waits.push((labels.clone(), *wait_ms));
        tokens.push((labels, *served));
    }
    numbers(page, &PROGRAM_WAIT, &waits);
    numbers(page, &PROGRAM_TOKENS, &tokens);
}

fn numbers(page: &mut Page, family: &Family, rows: &[(Labels, f64)]) {
    let series = rows
        .iter()
        .map(|(labels, value)| (labels, Sample::Number(*value)));
    page.write(family, series);
}

const fn gauge(
    name: &'static str,
    labels: &'static [&'static str],
    help: &'static str,
    legacy: &'static [Legacy],
) -> Family {
    Family::gauge(name, labels, help).also(legacy)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn queues_bands_and_saturation_carry_the_fields_labels() {
        let view = FlowView {
            pools: vec![PoolFlow {
                pool: "p".to_owned(),
                queues: vec![QueueView {
                    fairness_id: "t".to_owned(),
                    priority: -1,
                    model: "m".to_owned(),
                    target_model: "n".to_owned(),
                    requests: 3,
                    bytes: 99,
                }],
                bands: vec![BandView {
                    priority: -1,
                    requests_utilization: 0.5,
                    bytes_utilization: 0.25,
                }],
                requests_utilization: Some(0.125),
                bytes_utilization: None,
                saturation: vec![("decode", 0.75), ("effective", 1.5)],
            }],
            stale_endpoints: vec![("utilization-detector".to_owned(), 2)],
            programs: None,
        };
        let mut page = Page::new();
        render(&view, &mut page);
        let queue = r#"{fairness_id="t",priority="-1",inference_pool="p",model_name="m",target_model_name="n"}"#;
        for line in [
            format!("llm_d_epp_flow_control_queue_size{queue} 3"),
            format!("inference_extension_flow_control_queue_bytes{queue} 99"),
            r#"llm_d_epp_flow_control_capacity_utilization_requests{priority="-1",inference_pool="p"} 0.5"#.to_owned(),
            r#"llm_d_epp_flow_control_global_capacity_utilization_requests{inference_pool="p"} 0.125"#.to_owned(),
            r#"llm_d_epp_flow_control_pool_saturation{inference_pool="p",stage="decode"} 0.75"#.to_owned(),
            r#"inference_extension_flow_control_pool_saturation{inference_pool="p"} 1.5"#.to_owned(),
            r#"llm_d_epp_flow_control_stale_endpoints{detector="utilization-detector"} 2"#.to_owned(),
        ] {
            assert!(page.text().lines().any(|written| written == line), "{line}\n{}", page.text());
        }
        assert!(!page.text().contains("global_capacity_utilization_bytes{"));
    }
}
