//! From a document's tree to the resources in it, strictly: every field is known, has its type, and
//! makes sense, or the error says which one does not, where, and why.

use std::fmt;

use super::timestamp::seconds_since_1970;
use super::tree::{Node, Value};
use super::{ModelRewrite, Objective, RewriteRule, RewriteTarget};

/// What is wrong, and where.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Fault {
    pub(super) line: u64,
    /// Such as `spec.rules[0].targets[1].weight`; empty for the whole document.
    pub(super) path: String,
    pub(super) reason: String,
}

impl fmt::Display for Fault {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}: {}", self.path, self.reason)
    }
}

/// The API groups that define the two kinds, both at version v1alpha2.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(super) enum Group {
    Current,
    Legacy,
}

impl Group {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Current => "llm-d.ai",
            Self::Legacy => "inference.networking.x-k8s.io",
        }
    }
}

/// What tells two resources of one kind apart.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Identity {
    pub(super) group: Group,
    pub(super) namespace: String,
    pub(super) name: String,
    /// Where the name stands.
    pub(super) line: u64,
}

/// One object of a document.
pub(super) enum Document {
    Objective(Identity, Objective),
    /// With what the operator should know.
    Rewrite(Identity, ModelRewrite, Vec<Fault>),
    Other {
        kind: String,
        name: String,
        line: u64,
    },
}

const VERSION: &str = "v1alpha2";
const OBJECTIVE: &str = "InferenceObjective";
const REWRITE: &str = "InferenceModelRewrite";
const WEIGHTS: std::ops::RangeInclusive<i64> = 1..=1_000_000;

/// Kubernetes' ObjectMeta.
const METADATA: &[&str] = &[
    "annotations",
    "creationTimestamp",
    "deletionGracePeriodSeconds",
    "deletionTimestamp",
    "finalizers",
    "generateName",
    "generation",
    "labels",
    "managedFields",
    "name",
    "namespace",
    "ownerReferences",
    "resourceVersion",
    "selfLink",
    "uid",
];

/// The objects of a document: itself, or those of a `kind: List`.
pub(super) fn read(root: &Node) -> Result<Vec<Document>, Fault> {
    let at = At::root(root);
    if at.get("kind")?.map(|kind| kind.text()).transpose()? != Some("List") {
        return Ok(vec![object(&at)?]);
    }
    at.only(&["apiVersion", "kind", "metadata", "items"])?;
    let items = at
        .get("items")?
        .map_or_else(|| Ok(Vec::new()), |at| at.list())?;
    items.iter().map(object).collect()
}

fn object(at: &At<'_>) -> Result<Document, Fault> {
    let kind = at.need("kind")?.text()?;
    if kind != OBJECTIVE && kind != REWRITE {
        let metadata = at.get("metadata")?;
        let name = metadata.and_then(|at| at.get("name").ok()?);
        return Ok(Document::Other {
            kind: kind.to_owned(),
            name: name
                .and_then(|at| at.text().ok().map(str::to_owned))
                .unwrap_or_default(),
            line: at.node.line,
        });
    }
    at.only(&["apiVersion", "kind", "metadata", "spec", "status"])?;
    let group = group(&at.need("apiVersion")?)?;
    let metadata = at.need("metadata")?;
    metadata.only(METADATA)?;
    let name = metadata.need("name")?;
    let identity = Identity {
        group,
        namespace: metadata.optional_text("namespace")?.unwrap_or_default(),
        name: name.filled_text()?.to_owned(),
        line: name.node.line,
    };
    let spec = at.need("spec")?;
    if kind == OBJECTIVE {
        let objective = objective(&identity.name, &spec)?;
        return Ok(Document::Objective(identity, objective));
    }
    let created_s = match metadata.given("creationTimestamp")? {
        None => None,
        Some(at) => Some(
            seconds_since_1970(at.text()?)
                .ok_or_else(|| at.fault("is no time such as 2026-01-31T12:00:00Z"))?,
        ),
    };
    let mut warnings = Vec::new();
    let rewrite = ModelRewrite {
        name: identity.name.clone(),
        pool: pool(&spec)?,
        created_s,
        rules: rules(&spec, &mut warnings)?,
    };
    Ok(Document::Rewrite(identity, rewrite, warnings))
}

fn group(at: &At<'_>) -> Result<Group, Fault> {
    let given = at.text()?;
    for group in [Group::Current, Group::Legacy] {
        if given
            .strip_suffix(VERSION)
            .and_then(|rest| rest.strip_suffix('/'))
            == Some(group.name())
        {
            return Ok(group);
        }
    }
    Err(at.fault(format!(
        "{given:?} is neither {}/{VERSION} nor {}/{VERSION}",
        Group::Current.name(),
        Group::Legacy.name()
    )))
}

fn objective(name: &str, spec: &At<'_>) -> Result<Objective, Fault> {
    spec.only(&["poolRef", "priority"])?;
    let priority = match spec.given("priority")? {
        None => 0,
        Some(at) => {
            let given = at.integer()?;
            i32::try_from(given)
                .map_err(|_| at.fault(format!("{given} is outside the range of 32 bits")))?
        }
    };
    Ok(Objective {
        name: name.to_owned(),
        pool: pool(spec)?,
        priority,
    })
}

fn pool(spec: &At<'_>) -> Result<String, Fault> {
    let at = spec.need("poolRef")?;
    at.only(&["group", "kind", "name"])?;
    at.optional_text("group")?;
    if let Some(kind) = at.given("kind")?
        && kind.text()? != "InferencePool"
    {
        return Err(kind.fault(format!("{:?} is no InferencePool", kind.text()?)));
    }
    Ok(at.need("name")?.filled_text()?.to_owned())
}

fn rules(spec: &At<'_>, warnings: &mut Vec<Fault>) -> Result<Vec<RewriteRule>, Fault> {
    spec.only(&["poolRef", "rules"])?;
    let given = spec.need("rules")?.list()?;
    given.iter().map(|at| rule(at, warnings)).collect()
}

fn rule(at: &At<'_>, warnings: &mut Vec<Fault>) -> Result<RewriteRule, Fault> {
    at.only(&["matches", "targets"])?;
    let matches = at
        .given("matches")?
        .map_or_else(|| Ok(Vec::new()), |at| at.list())?;
    let models: Vec<String> = matches.iter().map(model).collect::<Result<_, _>>()?;
    let targets = at
        .given("targets")?
        .map_or_else(|| Ok(Vec::new()), |at| at.list())?;
    let targets: Vec<RewriteTarget> = targets.iter().map(target).collect::<Result<_, _>>()?;
    let weighted = targets.iter().filter(|target| target.weight.is_some());
    let weighted = weighted.count();
    if targets.is_empty() {
        warnings.push(at.fault("has no targets, so the requests that it matches keep their model"));
    } else if weighted > 0 && weighted < targets.len() {
        warnings
            .push(at.fault("has targets with and without a weight: those without get no requests"));
    }
    Ok(RewriteRule { models, targets })
}

fn model(at: &At<'_>) -> Result<String, Fault> {
    at.only(&["model"])?;
    let model = at.need("model")?;
    model.only(&["type", "value"])?;
    if let Some(kind) = model.given("type")?
        && kind.text()? != "Exact"
    {
        return Err(kind.fault(format!(
            "{:?} is not Exact, the one type there is",
            kind.text()?
        )));
    }
    Ok(model.need("value")?.filled_text()?.to_owned())
}

fn target(at: &At<'_>) -> Result<RewriteTarget, Fault> {
    at.only(&["modelRewrite", "weight"])?;
    let weight = match at.given("weight")? {
        None => None,
        Some(at) => {
            let given = at.integer()?;
            let weight = u32::try_from(given).ok();
            let weight = weight.filter(|_| WEIGHTS.contains(&given)).ok_or_else(|| {
                at.fault(format!(
                    "{given} is not from {} to {}",
                    WEIGHTS.start(),
                    WEIGHTS.end()
                ))
            })?;
            Some(weight)
        }
    };
    Ok(RewriteTarget {
        model: at.need("modelRewrite")?.filled_text()?.to_owned(),
        weight,
    })
}

/// A value and the way to it.
struct At<'a> {
    node: &'a Node,
    path: String,
}

impl<'a> At<'a> {
    fn root(node: &'a Node) -> Self {
        Self {
            node,
            path: String::new(),
        }
    }

    fn fault(&self, reason: impl Into<String>) -> Fault {
        Fault {
            line: self.node.line,
            path: self.path.clone(),
            reason: reason.into(),
        }
    }

    fn not(&self, expected: &str) -> Fault {
        self.fault(format!("is {}, not {expected}", self.node.value.shape()))
    }

    fn fields(&self) -> Result<&'a [(String, Node)], Fault> {
        match &self.node.value {
            Value::Object(fields) => Ok(fields),
            _ => Err(self.not("an object")),
        }
    }

    /// Refuses any other field.
    fn only(&self, known: &[&str]) -> Result<(), Fault> {
        let unknown = self
            .fields()?
            .iter()
            .find(|(key, _)| !known.contains(&key.as_str()));
        match unknown {
            None => Ok(()),
            Some((key, node)) => Err(Fault {
                line: node.line,
                path: self.path_of(key),
                reason: format!("is no field here; known are {}", known.join(", ")),
            }),
        }
    }

    fn get(&self, key: &str) -> Result<Option<At<'a>>, Fault> {
        let found = self.fields()?.iter().find(|(known, _)| known == key);
        Ok(found.map(|(_, node)| At {
            node,
            path: self.path_of(key),
        }))
    }

    /// A field that is not null.
    fn given(&self, key: &str) -> Result<Option<At<'a>>, Fault> {
        Ok(self.get(key)?.filter(|at| at.node.value != Value::Null))
    }

    fn need(&self, key: &str) -> Result<At<'a>, Fault> {
        self.given(key)?.ok_or_else(|| Fault {
            line: self.node.line,
            path: self.path_of(key),
            reason: "is missing".to_owned(),
        })
    }

    fn text(&self) -> Result<&'a str, Fault> {
        match &self.node.value {
            Value::Text(text) => Ok(text),
            _ => Err(self.not("text")),
        }
    }

    fn filled_text(&self) -> Result<&'a str, Fault> {
        let text = self.text()?;
        if text.is_empty() {
            return Err(self.fault("must not be empty"));
        }
        Ok(text)
    }

    fn optional_text(&self, key: &str) -> Result<Option<String>, Fault> {
        self.given(key)?
            .map(|at| at.text().map(str::to_owned))
            .transpose()
    }

    fn integer(&self) -> Result<i64, Fault> {
        match self.node.value {
            Value::Integer(number) => Ok(number),
            _ => Err(self.not("a whole number")),
        }
    }

    fn list(&self) -> Result<Vec<At<'a>>, Fault> {
        let Value::List(nodes) = &self.node.value else {
            return Err(self.not("a list"));
        };
        let nodes = nodes.iter().enumerate();
        Ok(nodes
            .map(|(place, node)| At {
                node,
                path: format!("{}[{place}]", self.path),
            })
            .collect())
    }

    fn path_of(&self, key: &str) -> String {
        if self.path.is_empty() {
            return key.to_owned();
        }
        format!("{}.{key}", self.path)
    }
}
