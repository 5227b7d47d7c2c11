//! EndpointPickerConfig: the field's configuration file, read strictly and resolved completely.
//!
//! ```text
//! text ──yaml──▶ tree ──draft──▶ what is written ──resolve──▶ ResolvedConfig ──show──▶ text
//! ```
//!
//! [`load`] accepts what the field's loader accepts, under both API groups, in YAML and JSON, and
//! fills in what it fills in. Where the field stops at the first mistake, or passes one over, all
//! mistakes of a file are reported together, each with its line. The types of plugins come from a
//! [`Catalogue`], so that this room knows no plugin itself.

mod catalogue;
mod draft;
mod field_types;
mod producers;
mod resolve;
mod resolve_flow;
mod resolve_plugins;
mod show;

use super::problems::{ConfigErrors, Problems};
use super::resolved::ResolvedConfig;
use super::yaml::{self, Content, TEXT_BYTES_MAX};

pub use catalogue::Catalogue;
pub use field_types::{DIRECT_SUCCESSORS, FIELD_TYPES};
pub use show::show;

/// Larger texts are refused.
pub const CONFIG_BYTES_MAX: usize = TEXT_BYTES_MAX;

/// What the command line allows a configuration.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct LoadOptions {
    /// Take plugin types that the field calls alpha.
    pub allow_experimental: bool,
}

/// What the field runs without a configuration: its three scorers with their weights; everything
/// else is implied.
pub const FIELD_DEFAULT: &str = "\
apiVersion: llm-d.ai/v1alpha1
kind: EndpointPickerConfig
plugins:
- type: queue-scorer
- type: kv-cache-utilization-scorer
- type: prefix-cache-scorer
schedulingProfiles:
- name: default
  plugins:
  - pluginRef: queue-scorer
    weight: 2
  - pluginRef: kv-cache-utilization-scorer
    weight: 2
  - pluginRef: prefix-cache-scorer
    weight: 3
";

/// Our own policy, `--policy expected-ttft`: the endpoint whose pick costs the fewest seconds.
pub const EXPECTED_TTFT: &str = "\
apiVersion: llm-d.ai/v1alpha1
kind: EndpointPickerConfig
plugins:
- type: expected-ttft-scorer
schedulingProfiles:
- name: default
  plugins:
  - pluginRef: expected-ttft-scorer
    weight: 1
";

/// Reads and resolves a configuration. `file_label` is what errors call it.
pub fn load(
    file_label: &str,
    text: &str,
    catalogue: &Catalogue,
    options: &LoadOptions,
) -> Result<ResolvedConfig, ConfigErrors> {
    let tree = yaml::parse(text).map_err(|error| ConfigErrors::syntax(file_label, &error))?;
    if tree.content == Content::Null {
        let reason = "holds no configuration; leave the flag out for the default one";
        return Err(ConfigErrors::whole(file_label, reason));
    }
    let problems = Problems::default();
    let resolved = draft::read(&tree, &problems)
        .and_then(|draft| resolve::resolve(draft, catalogue, *options, &problems));
    problems.into_result(file_label, resolved)
}

/// What no configuration means. An error says which of its types the catalogue lacks.
pub fn field_default(catalogue: &Catalogue) -> Result<ResolvedConfig, ConfigErrors> {
    load(
        "the default configuration",
        FIELD_DEFAULT,
        catalogue,
        &LoadOptions::default(),
    )
}

#[cfg(test)]
pub(super) mod tests;
