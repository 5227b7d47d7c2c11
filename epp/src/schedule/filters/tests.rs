//! Every filter: it keeps the order, adds nothing, and decides the same whatever the order is.

use proptest::prelude::*;
use serde_json::{Value, json};

use super::super::fixtures::{HeaderList, Setting, arbitrary_setting, request};
use super::super::plugin::Context;
use super::*;
use crate::fleet::{Matches, Snapshot};

/// What a filter is asked about, beside the fleet.
pub(super) struct Case {
    pub(super) headers: HeaderList,
    pub(super) peer: Option<usize>,
    /// `None` = all endpoints in their order.
    pub(super) candidates: Option<Vec<usize>>,
}

impl Default for Case {
    fn default() -> Self {
        Self {
            headers: HeaderList(Vec::new()),
            peer: None,
            candidates: None,
        }
    }
}

/// The candidates that a fresh filter keeps.
pub(super) fn kept(
    maker: &Maker<dyn Filter>,
    parameters: &Value,
    fleet: &Snapshot,
    case: &Case,
) -> Vec<usize> {
    let filter = (maker.make)(parameters).unwrap();
    assert_eq!(filter.type_name(), maker.plugin.name);
    let matches = Matches::default();
    let mut request = request(0, &matches, 0);
    request.headers = &case.headers;
    request.peer = case.peer;
    let context = Context {
        snapshot: fleet,
        request: &request,
        now_ms: 0,
    };
    let all = || (0..fleet.members.len()).collect();
    let mut candidates = case.candidates.clone().unwrap_or_else(all);
    filter.filter(&context, &mut candidates);
    candidates
}

/// Each filter without parameters, and those that do nothing then with some.
fn filters() -> Vec<Box<dyn Filter>> {
    let with: [(&str, Value); 8] = [
        (
            "by-label",
            json!({"label": "llm-d.ai/role", "validValues": ["both"]}),
        ),
        (
            "endpoint-attribute-filter",
            json!({
                "attribute": "kvUsage",
                "algorithm": {
                    "type": "threshold",
                    "threshold": {"operator": "LessThan", "value": 0.5},
                },
            }),
        ),
        (
            "label-selector-filter",
            json!({"matchLabels": {"llm-d.ai/role": "both"}}),
        ),
        ("session-affinity-filter", json!({"strategy": "session_id"})),
        ("topology-affinity-filter", json!({"minAffinity": "zone"})),
        (
            "utilization-filter",
            json!({"conditions": [{"metric": "waiting-queue", "maxValue": 1}]}),
        ),
        (
            "utilization-filter",
            json!({
                "conditions": [{"metric": "active-requests", "maxValue": 0}],
                "fallbackOnEmpty": true,
            }),
        ),
        (
            "label-selector-filter",
            json!({"matchExpressions": [{"key": "llm-d.ai/role", "operator": "DoesNotExist"}]}),
        ),
    ];
    let mut filters: Vec<_> = MAKERS
        .iter()
        .map(|maker| (maker.make)(&Value::Null).unwrap())
        .collect();
    filters.extend(with.iter().map(|(name, parameters)| {
        let named = |maker: &&Maker<dyn Filter>| maker.plugin.name == *name;
        (MAKERS.iter().find(named).unwrap().make)(parameters).unwrap()
    }));
    filters
}

fn filtered(filter: &dyn Filter, setting: &Setting, order: &[usize]) -> Vec<usize> {
    setting.with(|context| {
        let mut candidates = order.to_vec();
        filter.filter(context, &mut candidates);
        candidates
    })
}

proptest! {
    #[test]
    fn filters_keep_the_order_and_never_add(
        setting in arbitrary_setting(),
        picks in proptest::collection::vec(any::<prop::sample::Index>(), 0..4),
        order in Just((0..8).collect::<Vec<usize>>()).prop_shuffle(),
    ) {
        let count = setting.fleet.members.len();
        let order: Vec<usize> = order.into_iter().filter(|at| *at < count).collect();
        let straight: Vec<usize> = (0..count).collect();
        for filter in filters() {
            for pick in &picks {
                setting.with(|context| filter.picked(context, &[pick.index(count)]));
            }
            let kept = filtered(&*filter, &setting, &order);
            let mut expected = filtered(&*filter, &setting, &straight);
            // What is kept of a shuffled list is the same set, in the shuffled order.
            let place = |at: &usize| order.iter().position(|known| known == at);
            expected.sort_unstable_by_key(place);
            prop_assert_eq!(kept, expected, "{}", filter.type_name());
            // A second pass changes nothing, and no candidates stay none.
            prop_assert!(filtered(&*filter, &setting, &[]).is_empty());
        }
    }
}
