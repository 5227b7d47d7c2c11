//! The handlers over profiles that pick by role.

use std::collections::BTreeMap;

use serde_json::json;

use super::super::decision::Stages;
use super::super::fixtures::{request, snapshot};
use super::super::pickers::MaxScorePicker;
use super::super::plugin::{Filter, Headers, MediaItem, Request};
use super::super::profile::Profile;
use super::super::scheduler::Scheduler;
use super::*;
use crate::fleet::{Endpoint, Live, Matches, Snapshot};

/// Keeps the endpoints with this role.
#[derive(Debug)]
struct Role(&'static str);

impl Filter for Role {
    fn type_name(&self) -> &'static str {
        "role"
    }

    fn filter(&self, context: &Context<'_>, candidates: &mut Vec<usize>) {
        candidates.retain(|at| {
            context
                .member(*at)
                .spec
                .labels
                .get("role")
                .map(String::as_str)
                == Some(self.0)
        });
    }
}

fn fleet(roles: &[&str]) -> Snapshot {
    let mut fleet = snapshot(&vec![
        Live {
            healthy: true,
            ..Live::default()
        };
        roles.len()
    ]);
    let labelled = fleet.members.iter().zip(roles).map(|(member, role)| {
        let mut spec = member.spec.clone();
        spec.labels = BTreeMap::from([("role".to_owned(), (*role).to_owned())]);
        Arc::new(Endpoint {
            spec,
            ..Endpoint::clone(member)
        })
    });
    fleet.members = labelled.collect();
    fleet
}

fn scheduler(type_name: &str, parameters: &Value) -> Result<Scheduler, ParameterError> {
    let names = ["decode", "prefill", "encode"];
    scheduler_of(&names, type_name, parameters)
}

fn scheduler_of(
    names: &[&'static str],
    type_name: &str,
    parameters: &Value,
) -> Result<Scheduler, ParameterError> {
    let profiles: Vec<Profile> = names
        .iter()
        .map(|name| {
            Profile::new(name, Arc::new(MaxScorePicker::default()))
                .with_filter(Arc::new(Role(name)))
        })
        .collect();
    let deciders = |name: &str| -> Option<Arc<dyn Decider>> {
        let maker = super::super::deciders::MAKERS
            .iter()
            .find(|maker| maker.plugin.name == name)?;
        let parameters = match name {
            "prefix-based-pd-decider" => json!({"nonCachedTokens": 64}),
            _ => Value::Null,
        };
        (maker.make)(&parameters).ok().map(Arc::from)
    };
    let names: Vec<Arc<str>> = names.iter().map(|name| Arc::from(*name)).collect();
    let maker = MAKERS
        .iter()
        .find(|maker| maker.plugin.name == type_name)
        .unwrap();
    let handler = (maker.make)(
        parameters,
        &Parts {
            profiles: &names,
            decider: &deciders,
        },
    )?;
    Ok(Scheduler::new(profiles, handler))
}

fn header<'a>(decision: &'a Decision, name: &str) -> Option<&'a str> {
    let found = decision.headers.iter().find(|(known, _)| *known == name);
    found.map(|(_, value)| value.as_str())
}

#[test]
fn prefill_and_encode_run_apart_where_the_deciders_say_so() {
    let scheduler = scheduler(
        "disagg-profile-handler",
        &json!({"deciders": {"prefill": "prefix-based-pd-decider", "encode": "always-disagg-multimodal-decider"}}),
    )
    .unwrap();
    let fleet = fleet(&["decode", "prefill", "encode"]);
    let mut matches = Matches::default();
    let short = scheduler
        .pick(&fleet, &request(63, &matches, 1), 1)
        .unwrap();
    assert_eq!(short.stages, Stages::default());
    assert!(short.headers.is_empty());

    let media = [MediaItem {
        modality: "image",
        hash: 1,
        bytes: 10,
    }];
    let mut long = request(64, &matches, 1);
    long.media = &media;
    let split = scheduler.pick(&fleet, &long, 1).unwrap();
    assert_eq!(split.stages.label(), "encode-prefill-decode");
    assert_eq!(split.primary().endpoints.as_slice(), [0]);
    assert_eq!(
        header(&split, "x-prefiller-host-port"),
        Some("10.0.0.1:8001")
    );
    assert_eq!(
        header(&split, "x-encoder-hosts-ports"),
        Some("10.0.0.1:8002")
    );

    // What the decode endpoint has cached needs no prefill.
    let decode = &fleet.members[0];
    matches.record(decode.id, decode.generation, 16, 16);
    let cached = scheduler
        .pick(&fleet, &request(64, &matches, 1), 1)
        .unwrap();
    assert_eq!(cached.stages.label(), "decode-only");
}

#[test]
fn a_request_without_a_decode_endpoint_fails_and_one_without_prefill_does_not() {
    let parameters = json!({"deciders": {"prefill": "always-disagg-pd-decider"}});
    let scheduler = scheduler("disagg-profile-handler", &parameters).unwrap();
    let matches = Matches::default();
    let failed = scheduler.pick(&fleet(&["prefill"]), &request(64, &matches, 1), 1);
    assert_eq!(failed.err(), Some(NoEndpoint::FiltersExcludeAll));
    let alone = scheduler
        .pick(&fleet(&["decode"]), &request(64, &matches, 1), 1)
        .unwrap();
    assert_eq!(alone.stages.label(), "decode-only");
    assert_eq!(alone.runs().len(), 2, "the prefill profile was tried");
}

#[test]
fn prefill_first_runs_decode_last() {
    let scheduler = scheduler(
        "disagg-profile-handler",
        &json!({"stageOrder": "prefill-first"}),
    )
    .unwrap();
    let matches = Matches::default();
    let decision = scheduler
        .pick(&fleet(&["decode", "prefill"]), &request(8, &matches, 1), 1)
        .unwrap();
    let order: Vec<_> = decision.runs().iter().map(|run| &*run.profile).collect();
    assert_eq!(order, ["prefill", "decode"]);
    assert_eq!(decision.stages.label(), "prefill-decode");
}

#[test]
fn references_that_lead_nowhere_are_named() {
    let of = |type_name: &str, parameters: Value| {
        scheduler(type_name, &parameters).unwrap_err().to_string()
    };
    let text = of(
        "disagg-profile-handler",
        json!({"deciders": {"prefill": "nobody"}}),
    );
    assert_eq!(text, "deciders.prefill: no decider is named \"nobody\"");
    let text = of(
        "disagg-profile-handler",
        json!({"profiles": {"decode": "dekode"}}),
    );
    assert_eq!(
        text,
        "profiles.decode: no scheduling profile is named \"dekode\""
    );
    let text = of(
        "disagg-profile-handler",
        json!({"stageOrder": "prefill-first", "deciders": {"prefill": "always-disagg-pd-decider"}}),
    );
    assert!(text.starts_with("deciders.prefill: "), "{text}");
    let text = of("single-profile-handler", Value::Null);
    assert!(text.contains("3 are configured"), "{text}");
    let text = of("header-profile-handler", json!({"defaultProfile": "x"}));
    assert!(text.starts_with("defaultProfile: "), "{text}");
}

#[test]
fn the_older_handler_sends_ranks_to_the_primary_port() {
    let parameters = json!({"deciderPluginName": "always-disagg-pd-decider", "primaryPort": 9000});
    let scheduler = scheduler("pd-profile-handler", &parameters).unwrap();
    let matches = Matches::default();
    let decision = scheduler
        .pick(&fleet(&["decode", "prefill"]), &request(8, &matches, 1), 1)
        .unwrap();
    assert_eq!(decision.port, Some(9000));
    assert_eq!(
        header(&decision, "x-data-parallel-host-port"),
        Some("10.0.0.1:8000")
    );
    assert_eq!(
        header(&decision, "x-prefiller-host-port"),
        Some("10.0.0.1:8001")
    );
}

#[test]
fn a_data_parallel_pick_names_its_rank() {
    let scheduler =
        scheduler_of(&["decode"], "data-parallel-profile-handler", &Value::Null).unwrap();
    let matches = Matches::default();
    let decision = scheduler
        .pick(&fleet(&["x", "decode"]), &request(8, &matches, 1), 1)
        .unwrap();
    assert_eq!(decision.port, Some(8000));
    assert_eq!(
        header(&decision, "x-data-parallel-host-port"),
        Some("10.0.0.1:8001")
    );
}

#[derive(Debug)]
struct Profiled(&'static str);

impl Headers for Profiled {
    fn get(&self, name: &str) -> Option<&str> {
        (name == "epp-profile").then_some(self.0)
    }
}

#[test]
fn a_header_names_the_profile() {
    let scheduler = scheduler("header-profile-handler", &Value::Null).unwrap();
    let matches = Matches::default();
    let fleet = fleet(&["decode", "prefill"]);
    let pick = |value: &'static str| {
        let headers = Profiled(value);
        let request = Request {
            headers: &headers,
            ..request(8, &matches, 1)
        };
        scheduler
            .pick(&fleet, &request, 1)
            .map(|decision| decision.primary().endpoints.to_vec())
    };
    assert_eq!(pick("prefill"), Ok(vec![1]));
    assert_eq!(pick(" "), Ok(vec![0]));
    assert_eq!(pick("nonsense"), Err(NoEndpoint::UnknownProfile));
}
