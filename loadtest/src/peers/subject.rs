//! Who is measured, by name.

use std::str::FromStr;

use anyhow::{Result, bail};

use super::routers::Kind;
use crate::fleet::Policy;

/// One that has a row, or several.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Subject {
    /// Envoy, with or without epp.
    Ours(Policy),
    /// A router of PyPI.
    Router { kind: Kind, version: String },
    /// The simulation that comes with Dynamo.
    DynamoReplay { version: String },
}

/// The version that is installed where none is named.
pub(super) const DYNAMO_VERSION: &str = "1.6.1";
const DYNAMO: &str = "dynamo-replay";

impl Subject {
    /// As on the command line, without the version.
    pub(super) fn name(&self) -> String {
        match self {
            Self::Ours(Policy::RoundRobin) => "round-robin".to_owned(),
            Self::Ours(Policy::FieldDefault) => "field-default".to_owned(),
            Self::Ours(Policy::ExpectedTtft) => "expected-ttft".to_owned(),
            Self::Ours(Policy::File(path)) => format!("file:{}", path.display()),
            Self::Router { kind, .. } => kind.package().to_owned(),
            Self::DynamoReplay { .. } => DYNAMO.to_owned(),
        }
    }
}

impl FromStr for Subject {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        if let Some(policy) = Policy::named(text) {
            return Ok(Self::Ours(policy));
        }
        let (name, version) = match text.split_once("==") {
            Some((name, version)) => (name, Some(version)),
            None => (text, None),
        };
        // It becomes part of a path and of pip's command line.
        let is_version = |text: &str| {
            let allowed = |c: char| c.is_ascii_alphanumeric() || c == '.' || c == '-';
            text.starts_with(|c: char| c.is_ascii_digit()) && text.chars().all(allowed)
        };
        if let Some(version) = version.filter(|version| !is_version(version)) {
            bail!("{version:?} is no version");
        }
        let or = |own: &str| version.unwrap_or(own).to_owned();
        if name == DYNAMO {
            let version = or(DYNAMO_VERSION);
            return Ok(Self::DynamoReplay { version });
        }
        let Some(kind) = Kind::ALL.into_iter().find(|kind| kind.package() == name) else {
            bail!(
                "no peer {name:?}; there are round-robin, field-default, expected-ttft, file:PATH, sglang-router, smg, \
                 vllm-router and {DYNAMO}"
            );
        };
        let version = or(kind.version());
        Ok(Self::Router { kind, version })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_and_given_back() {
        for name in [
            "round-robin",
            "field-default",
            "expected-ttft",
            "file:a.yaml",
            "sglang-router",
            "smg",
            "vllm-router",
            "dynamo-replay",
        ] {
            assert_eq!(name.parse::<Subject>().unwrap().name(), name);
        }
        let named: Subject = "smg==1.2.0".parse().unwrap();
        let version = "1.2.0".to_owned();
        let kind = Kind::Smg;
        assert_eq!(named, Subject::Router { kind, version });
    }

    #[test]
    fn what_is_no_peer_is_refused() {
        for (text, part) in [
            ("nginx", "no peer \"nginx\""),
            ("smg==../..", "no version"),
            ("smg==", "no version"),
            ("", "no peer"),
        ] {
            let error = text.parse::<Subject>().unwrap_err().to_string();
            assert!(error.contains(part), "{text}: {error}");
        }
    }
}
