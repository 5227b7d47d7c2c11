//! `encode-filter`, `prefill-filter`, `decode-filter`: keep the endpoints that do one stage of a
//! request, by the label `llm-d.ai/role`.
//!
//! A worker may do several stages, and its role names them all (`both` is the old word for prefill
//! and decode). An endpoint without the label does the whole request, so only decode, which is the
//! stage that answers, takes it: a pool that is not split at all keeps working.

use super::super::plugin::{Filter, Maker};
use super::by_label::{ByLabelFilter, Parameters};
use crate::config::plugins::{self, NoParameters, PluginKind, PluginType, Stage};

/// The label that names a worker's stages.
pub const ROLE_LABEL: &str = "llm-d.ai/role";

/// The type name of the filter for the first stage, which encodes images.
pub const ENCODE_TYPE_NAME: &str = "encode-filter";
/// The type name of the filter for the stage that reads the prompt.
pub const PREFILL_TYPE_NAME: &str = "prefill-filter";
/// The type name of the filter for the stage that answers.
pub const DECODE_TYPE_NAME: &str = "decode-filter";

/// Roles that encode.
pub const ENCODE_ROLES: &[&str] = &["encode", "encode-prefill", "encode-prefill-decode"];
/// Roles that prefill.
pub const PREFILL_ROLES: &[&str] = &[
    "prefill",
    "encode-prefill",
    "prefill-decode",
    "both",
    "encode-prefill-decode",
];
/// Roles that decode.
pub const DECODE_ROLES: &[&str] = &["decode", "prefill-decode", "both", "encode-prefill-decode"];

/// The plugin type for encoding.
pub const ENCODE_MAKER: Maker<dyn Filter> = Maker {
    plugin: plugin(ENCODE_TYPE_NAME),
    make: |given| {
        plugins::read::<NoParameters>(given)?;
        Ok(made(ENCODE_TYPE_NAME, ENCODE_ROLES, false))
    },
};

/// The plugin type for prefill.
pub const PREFILL_MAKER: Maker<dyn Filter> = Maker {
    plugin: plugin(PREFILL_TYPE_NAME),
    make: |given| {
        plugins::read::<NoParameters>(given)?;
        Ok(made(PREFILL_TYPE_NAME, PREFILL_ROLES, false))
    },
};

/// The plugin type for decode.
pub const DECODE_MAKER: Maker<dyn Filter> = Maker {
    plugin: plugin(DECODE_TYPE_NAME),
    make: |given| {
        plugins::read::<NoParameters>(given)?;
        Ok(made(DECODE_TYPE_NAME, DECODE_ROLES, true))
    },
};

const fn plugin(name: &'static str) -> PluginType {
    PluginType {
        name,
        kind: PluginKind::Filter,
        stage: Stage::Beta,
        check: plugins::check::<NoParameters>,
    }
}

fn made(type_name: &'static str, roles: &[&str], allows_no_label: bool) -> Box<dyn Filter> {
    let parameters = Parameters {
        label: ROLE_LABEL.to_owned(),
        valid_values: roles.iter().map(|role| (*role).to_owned()).collect(),
        allows_no_label,
    };
    Box::new(ByLabelFilter::new(type_name, parameters))
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::super::super::fixtures::labelled;
    use super::super::tests::{Case, kept};
    use super::*;

    #[test]
    fn each_stage_takes_the_roles_that_do_it() {
        const NAMES: [&str; 8] = [
            "encode",
            "prefill",
            "decode",
            "encode-prefill",
            "prefill-decode",
            "encode-prefill-decode",
            "both",
            "nonsense",
        ];
        let labels: Vec<[(&str, &str); 1]> =
            NAMES.iter().map(|role| [(ROLE_LABEL, *role)]).collect();
        let mut labels: Vec<&[(&str, &str)]> = labels.iter().map(<[_; 1]>::as_slice).collect();
        labels.push(&[]);
        let fleet = labelled(&labels);
        let of = |maker| kept(maker, &Value::Null, &fleet, &Case::default());
        assert_eq!(of(&ENCODE_MAKER), [0, 3, 5]);
        assert_eq!(of(&PREFILL_MAKER), [1, 3, 4, 5, 6]);
        assert_eq!(of(&DECODE_MAKER), [2, 4, 5, 6, 8]);
    }
}
