//! InferenceObjective and InferenceModelRewrite without Kubernetes: the manifests as `kubectl apply`
//! takes them, from one file of YAML or JSON, several documents or `kind: List`.
//!
//! ```yaml
//! apiVersion: llm-d.ai/v1alpha2            # or inference.networking.x-k8s.io/v1alpha2
//! kind: InferenceObjective
//! metadata: {name: batch}
//! spec: {poolRef: {name: my-pool}, priority: -10}
//! ---
//! apiVersion: llm-d.ai/v1alpha2
//! kind: InferenceModelRewrite
//! metadata: {name: canary, creationTimestamp: "2026-01-01T00:00:00Z"}
//! spec:
//!   poolRef: {name: my-pool}
//!   rules:
//!   - matches: [{model: {type: Exact, value: chat}}]
//!     targets: [{weight: 9, modelRewrite: chat-v1}, {weight: 1, modelRewrite: chat-v2}]
//! ```
//!
//! A file is taken whole or not at all. Documents of other kinds are left aside with a warning, so
//! that a pool's whole manifest can be given; in those of the two kinds every unknown field is an
//! error. Where one name stands in both groups, the older group's is ignored.

mod objects;
mod timestamp;
mod tree;

use std::collections::{HashMap, HashSet};
use std::io::Read;
use std::path::Path;

use self::objects::{Document, Group};

/// Larger files are refused.
pub const FILE_BYTES_MAX: usize = 4 << 20;

/// What a file says, in its order.
#[derive(Clone, PartialEq, Default, Debug)]
pub struct Resources {
    pub objectives: Vec<Objective>,
    pub rewrites: Vec<ModelRewrite>,
    /// What the operator should know: documents left aside, rules without effect.
    pub warnings: Vec<String>,
}

/// An InferenceObjective.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Objective {
    pub name: String,
    /// Name of the InferencePool that it is for.
    pub pool: String,
    /// Higher is more urgent, below 0 may be shed; 0 where the document has none.
    pub priority: i32,
}

/// An InferenceModelRewrite.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ModelRewrite {
    pub name: String,
    /// Name of the InferencePool that it is for.
    pub pool: String,
    /// When it was made, in seconds since 1970; `None` where the document does not say.
    pub created_s: Option<i64>,
    pub rules: Vec<RewriteRule>,
}

/// One of `spec.rules`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RewriteRule {
    /// The models that it matches; none of them = every request.
    pub models: Vec<String>,
    pub targets: Vec<RewriteTarget>,
}

/// One of `spec.rules[].targets`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RewriteTarget {
    pub model: String,
    /// From 1 to 1,000,000.
    pub weight: Option<u32>,
}

/// Why a file was refused.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum ResourcesError {
    #[error("{file}: {reason}")]
    Read { file: String, reason: String },
    #[error("{file} is larger than {FILE_BYTES_MAX} bytes")]
    TooLarge { file: String },
    /// Documents count from 1, as lines do. The path is empty for the whole document.
    #[error("{file}, line {line} (document {document}): {}{reason}", shown(path))]
    Document {
        file: String,
        document: usize,
        line: u64,
        path: String,
        reason: String,
    },
}

fn shown(path: &str) -> String {
    if path.is_empty() {
        return String::new();
    }
    format!("{path}: ")
}

/// Reads and checks a file; no more than one byte past the limit, whatever its size.
pub fn load(path: &Path) -> Result<Resources, ResourcesError> {
    let file = path.display().to_string();
    let mut content = Vec::new();
    let read = std::fs::File::open(path).and_then(|opened| {
        opened
            .take(FILE_BYTES_MAX as u64 + 1)
            .read_to_end(&mut content)
    });
    match read {
        Ok(_) => parse(&file, &content),
        Err(error) => Err(ResourcesError::Read {
            file,
            reason: error.to_string(),
        }),
    }
}

/// Checks the content of a file. `file` is what messages call it.
pub fn parse(file: &str, content: &[u8]) -> Result<Resources, ResourcesError> {
    if content.len() > FILE_BYTES_MAX {
        return Err(ResourcesError::TooLarge {
            file: file.to_owned(),
        });
    }
    let text = std::str::from_utf8(content).map_err(|error| ResourcesError::Read {
        file: file.to_owned(),
        reason: error.to_string(),
    })?;
    let mut found = Found::default();
    for (place, document) in documents(text).into_iter().enumerate() {
        let number = place + 1;
        found
            .add(file, number, &document)
            .map_err(|fault| ResourcesError::Document {
                file: file.to_owned(),
                document: number,
                line: fault.line,
                path: fault.path,
                reason: fault.reason,
            })?;
    }
    Ok(found.settled())
}

impl Resources {
    /// Everything, whichever pools it names: for a process whose one pool has no name of its own.
    pub fn for_any_pool(&self) -> PoolResources {
        PoolResources {
            objectives: self.objectives.clone(),
            rewrites: self.rewrites.clone(),
        }
    }

    /// What a pool is given. A resource is for the pool that its `poolRef` names.
    pub fn for_pool(&self, name: &str) -> PoolResources {
        let objectives = self.objectives.iter();
        let rewrites = self.rewrites.iter();
        PoolResources {
            objectives: objectives
                .filter(|objective| objective.pool == name)
                .cloned()
                .collect(),
            rewrites: rewrites
                .filter(|rewrite| rewrite.pool == name)
                .cloned()
                .collect(),
        }
    }
}

/// The resources of one pool, in the file's order.
#[derive(Clone, PartialEq, Default, Debug)]
pub struct PoolResources {
    pub objectives: Vec<Objective>,
    pub rewrites: Vec<ModelRewrite>,
}

/// One document of a file.
struct Piece<'a> {
    text: &'a str,
    /// The lines before it.
    lines_before: u64,
}

/// The documents of a file: each begins with a line of `---`, or where the file does. YAML takes
/// such a line for a border wherever it stands, even within a block of text. Pieces that hold
/// nothing but comments and directives are none.
fn documents(text: &str) -> Vec<Piece<'_>> {
    let mut pieces = Vec::new();
    let (mut start, mut start_line) = (0, 0);
    let mut offset = 0;
    for (line_number, line) in text.split_inclusive('\n').enumerate() {
        let is_border = line
            .strip_prefix("---")
            .is_some_and(|rest| rest.is_empty() || rest.starts_with(char::is_whitespace));
        if is_border {
            pieces.push((&text[start..offset], start_line));
            (start, start_line) = (offset, line_number as u64);
        }
        offset += line.len();
    }
    pieces.push((&text[start..], start_line));
    pieces.retain(|(text, _)| !is_blank(text));
    pieces
        .into_iter()
        .map(|(text, lines_before)| Piece { text, lines_before })
        .collect()
}

fn is_blank(text: &str) -> bool {
    text.lines().all(|line| {
        let line = line.strip_prefix("---").unwrap_or(line).trim_ascii();
        line.is_empty() || line.starts_with(['#', '%']) || line == "..."
    })
}

/// Resources with what tells them apart, before the older group's give way.
#[derive(Default)]
struct Found {
    objectives: Vec<(objects::Identity, Objective)>,
    rewrites: Vec<(objects::Identity, ModelRewrite)>,
    warnings: Vec<String>,
    /// The lines of their names.
    lines: HashMap<Key, u64>,
}

/// Kind, group, namespace and name: what may stand once.
type Key = (&'static str, Group, String, String);

impl Found {
    fn add(&mut self, file: &str, number: usize, piece: &Piece<'_>) -> Result<(), objects::Fault> {
        let at = |line: u64| format!("{file}, line {line} (document {number})");
        let root = tree::parse(piece.text, piece.lines_before)?;
        for document in objects::read(&root)? {
            match document {
                Document::Objective(identity, objective) => {
                    self.unique("InferenceObjective", &identity)?;
                    self.objectives.push((identity, objective));
                }
                Document::Rewrite(identity, rewrite, warnings) => {
                    self.unique("InferenceModelRewrite", &identity)?;
                    self.rewrites.push((identity, rewrite));
                    let warnings = warnings.into_iter();
                    self.warnings
                        .extend(warnings.map(|fault| format!("{}: {}", at(fault.line), fault)));
                }
                Document::Other { kind, name, line } => self.warnings.push(format!(
                    "{}: {kind} {name:?} is left aside: only InferenceObjective and InferenceModelRewrite are read here",
                    at(line)
                )),
            }
        }
        Ok(())
    }

    fn unique(
        &mut self,
        kind: &'static str,
        identity: &objects::Identity,
    ) -> Result<(), objects::Fault> {
        let (namespace, name) = (identity.namespace.clone(), identity.name.clone());
        let key = (kind, identity.group, namespace, name);
        match self.lines.insert(key, identity.line) {
            None => Ok(()),
            Some(line) => Err(objects::Fault {
                line: identity.line,
                path: "metadata.name".to_owned(),
                reason: format!("{:?} is defined on line {line} already", identity.name),
            }),
        }
    }

    /// Drops what stands in the newer group as well.
    fn settled(self) -> Resources {
        let mut warnings = self.warnings;
        let objectives = newer(self.objectives, "InferenceObjective", &mut warnings);
        let rewrites = newer(self.rewrites, "InferenceModelRewrite", &mut warnings);
        Resources {
            objectives,
            rewrites,
            warnings,
        }
    }
}

fn newer<T>(all: Vec<(objects::Identity, T)>, kind: &str, warnings: &mut Vec<String>) -> Vec<T> {
    let present: HashSet<(String, String)> = all
        .iter()
        .filter(|(identity, _)| identity.group == Group::Current)
        .map(|(identity, _)| (identity.namespace.clone(), identity.name.clone()))
        .collect();
    let mut kept = Vec::with_capacity(all.len());
    for (identity, resource) in all {
        let name = (identity.namespace, identity.name);
        if identity.group == Group::Legacy && present.contains(&name) {
            warnings.push(format!(
                "line {}: {kind} {:?} of group {} is ignored, because group {} defines it as well",
                identity.line,
                name.1,
                Group::Legacy.name(),
                Group::Current.name(),
            ));
        } else {
            kept.push(resource);
        }
    }
    kept
}

#[cfg(test)]
mod tests;
