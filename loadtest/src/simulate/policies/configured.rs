//! Policies that are configurations of epp: the field's default, variants of it, ours, and any file.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use pointsman_epp::config::ConfigSource;
use pointsman_epp::config::epc::{FIELD_DEFAULT, LoadOptions};
use pointsman_epp::pipeline::Policy as Parts;
use pointsman_epp::pipeline::catalogue::catalogue;
use pointsman_epp::schedule::expected::{
    Estimate, Estimates, FleetExpectation, Placement, Sighting,
};
use pointsman_epp::schedule::{Decision, Request};

use super::{Choice, Knowledge, View};
use crate::simulate::gate::Gate;

/// The prefix alone decides.
const PREFIX_ALONE: &str = "\
apiVersion: llm-d.ai/v1alpha1
kind: EndpointPickerConfig
plugins:
- type: prefix-cache-scorer
- type: queue-scorer
schedulingProfiles:
- name: default
  plugins:
  - pluginRef: prefix-cache-scorer
    weight: 3
  - pluginRef: queue-scorer
    weight: 1
";

/// A policy of epp, built from its configuration as the process builds it.
#[derive(Debug)]
pub struct Configured {
    parts: Parts,
    expectation: Option<FleetExpectation>,
    estimates: Estimates,
    decision: Decision,
    knowledge: Knowledge,
}

impl Configured {
    /// `None` where no configuration has this name.
    pub(super) fn named(name: &str, parameters: &str) -> Result<Option<Self>> {
        let (source, events) = match name {
            "field-default" => (ConfigSource::FieldDefault, false),
            "approximate-prefix" => (ConfigSource::Text(PREFIX_ALONE.to_owned()), false),
            "precise-prefix" => (ConfigSource::Text(FIELD_DEFAULT.to_owned()), true),
            "expected-ttft" => (ConfigSource::Text(expected_ttft(parameters)?), true),
            "file" => (ConfigSource::File(PathBuf::from(parameters)), true),
            _ => return Ok(None),
        };
        if !parameters.is_empty() && !["file", "expected-ttft"].contains(&name) {
            bail!("policy {name:?} takes no parameters");
        }
        let options = LoadOptions {
            allow_experimental: true,
        };
        let loaded = source
            .load(&catalogue(), &options)
            .with_context(|| format!("policy {name}"))?;
        let parts = Parts::build(loaded.config, 0)?;
        Ok(Some(Self {
            expectation: parts.expectation.map(FleetExpectation::new),
            parts,
            estimates: Estimates::default(),
            decision: Decision::default(),
            knowledge: Knowledge {
                pages: true,
                events,
                picks: true,
                ..Knowledge::default()
            },
        }))
    }

    pub(super) fn knowledge(&self) -> Knowledge {
        self.knowledge
    }

    /// What requests wait at, where the configuration has flow control.
    pub(super) fn gate(&self) -> Option<Gate> {
        let settings = self.parts.flow.clone()?;
        Some(Gate::new(settings, self.parts.detector))
    }

    pub(super) fn pick(&mut self, view: &View<'_>) -> Option<Choice> {
        let now_us = micros(view.now);
        let prompt_tokens = view.asked.tokens.len() as u32;
        let mut request = Request {
            prompt_tokens,
            tie_seed: view.asked.seed,
            ..Request::new("model", view.matches)
        };
        if let Some(expectation) = &mut self.expectation {
            let (snapshot, matches) = (view.snapshot, view.matches);
            expectation.estimate(
                snapshot,
                matches,
                prompt_tokens,
                now_us,
                &mut self.estimates,
            );
            request.estimates = Some(&self.estimates);
        }
        let now_ms = now_us / 1_000 + 1;
        let scheduler = &self.parts.scheduler;
        scheduler
            .pick_into(view.snapshot, &request, now_ms, &mut self.decision)
            .ok()?;
        let at = *self.decision.primary().endpoints.first()?;
        let member = view.snapshot.members.get(at)?;
        let who = (member.id, member.generation);
        let placement = self
            .expectation
            .as_mut()
            .and_then(|expectation| expectation.place(who, prompt_tokens, view.cached(at), now_us));
        let estimate = self.expectation.as_ref().and(self.estimates.get(at));
        Some(Choice {
            position: at,
            placement,
            expected_s: estimate.map(Estimate::ttft_s),
        })
    }

    pub(super) fn first_token(&mut self, placement: Placement, at: Duration, sighting: Sighting) {
        if let Some(expectation) = &mut self.expectation {
            expectation.first_token(placement, micros(at), sighting);
        }
    }

    pub(super) fn ended(&mut self, placement: Placement, at: Duration) {
        if let Some(expectation) = &mut self.expectation {
            expectation.ended(placement, micros(at));
        }
    }
}

/// Our own policy, with parameters of its scorer as `name=value,…`.
fn expected_ttft(parameters: &str) -> Result<String> {
    let mut lines = String::new();
    for parameter in parameters
        .split(&[',', ';'])
        .filter(|text| !text.is_empty())
    {
        let (name, value) = parameter
            .split_once('=')
            .with_context(|| format!("{parameter:?} is not NAME=VALUE"))?;
        if lines.is_empty() {
            lines.push_str("  parameters:\n");
        }
        for part in ["    ", name, ": ", value, "\n"] {
            lines.push_str(part);
        }
    }
    Ok(format!(
        "apiVersion: llm-d.ai/v1alpha1\nkind: EndpointPickerConfig\nplugins:\n- type: expected-ttft-scorer\n{lines}\
         schedulingProfiles:\n- name: default\n  plugins:\n  - pluginRef: expected-ttft-scorer\n    weight: 1\n"
    ))
}

fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}
