//! Pools of endpoints: one from the plain flags, or several in one process from `--pools-file`.
//!
//! ```yaml
//! pools:
//!   - name: chat                      # unique; the label of metrics
//!     default: true                   # takes what belongs to no other pool; one at most
//!     authorities: [chat.example.com] # host names whose requests belong here
//!     endpointsFile: chat.yaml        # or endpoints: [127.0.0.1:8000]
//!     configFile: chat-config.yaml    # optional: an EndpointPickerConfig
//!     resourcesFile: objectives.yaml  # optional
//!     tokenizers: {qwen3: /models/qwen3}   # optional; or a list of [MODEL=]FOLDER
//! ```
//!
//! Paths are relative to the folder of the file. A single pool is the default one without saying so.

use std::path::{Path, PathBuf};

use super::fields::{Cursor, Fields, Located};
use super::problems::{ConfigErrors, Problems, shown};
use super::settings::{EndpointSource, TokenizerFolder};
use super::source::{self, ConfigSource};
use super::yaml::{self, Content, TEXT_BYTES_MAX};

/// The name of the one pool of a process without a pools file.
pub const DEFAULT_POOL: &str = "default";

/// Larger files are refused.
pub const POOLS_BYTES_MAX: usize = TEXT_BYTES_MAX;

const POOLS_MAX: usize = 1024;
const AUTHORITIES_MAX: usize = 256;
const ENDPOINTS_MAX: usize = 4096;
const TOKENIZERS_MAX: usize = 256;
const NAME_CHARS_MAX: usize = 253;

/// What one pool is built from.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PoolSettings {
    /// Letters, digits, `-`, `_` and `.`.
    pub name: String,
    /// Whether it takes requests that belong to no other pool.
    pub is_default: bool,
    /// Lower-case host names, without a port.
    pub authorities: Vec<String>,
    pub endpoints: EndpointSource,
    pub config: ConfigSource,
    /// InferenceObjective and InferenceModelRewrite documents.
    pub resources_file: Option<PathBuf>,
    pub tokenizers: Vec<TokenizerFolder>,
}

/// Reads a pools file.
pub fn load(path: &Path) -> Result<Vec<PoolSettings>, ConfigErrors> {
    let file = path.display().to_string();
    let text = source::read(path, POOLS_BYTES_MAX)?;
    parse(&file, &text, path.parent().unwrap_or(Path::new("")))
}

/// Reads the text of a pools file. `folder` is what its paths are relative to.
pub fn parse(file: &str, text: &str, folder: &Path) -> Result<Vec<PoolSettings>, ConfigErrors> {
    let tree = yaml::parse(text).map_err(|error| ConfigErrors::syntax(file, &error))?;
    let problems = Problems::default();
    let pools = read(&Cursor::top(&tree, &problems), folder, &problems);
    problems.into_result(file, pools)
}

fn read(top: &Cursor<'_>, folder: &Path, problems: &Problems) -> Option<Vec<PoolSettings>> {
    let list = top.fields(&["pools"])?.need("pools")?;
    let mut pools: Vec<PoolSettings> = Vec::new();
    let items = list.items(POOLS_MAX)?;
    if items.is_empty() {
        list.problem("names no pool");
    }
    for item in &items {
        let Some((name, pool)) = pool(item, folder, problems) else {
            continue;
        };
        check_against(&pools, &name, &pool, problems);
        pools.push(pool);
    }
    if let [only] = pools.as_mut_slice() {
        only.is_default = true;
    }
    Some(pools)
}

/// What two pools must not share.
fn check_against(
    earlier: &[PoolSettings],
    name: &Located<String>,
    pool: &PoolSettings,
    problems: &Problems,
) {
    let problem = |reason: &str| problems.add(name.place, &name.path, reason);
    if earlier.iter().any(|other| other.name == pool.name) {
        problem(&format!("a second pool named {}", shown(&pool.name)));
    }
    if pool.is_default && earlier.iter().any(|other| other.is_default) {
        problem("a second default pool");
    }
    for authority in &pool.authorities {
        let owner = earlier
            .iter()
            .find(|other| other.authorities.contains(authority));
        if let Some(owner) = owner {
            let reason = format!(
                "the authority {} belongs to the pool {} already",
                shown(authority),
                shown(&owner.name)
            );
            problem(&reason);
        }
    }
}

fn pool(
    cursor: &Cursor<'_>,
    folder: &Path,
    problems: &Problems,
) -> Option<(Located<String>, PoolSettings)> {
    let fields = cursor.fields(&[
        "name",
        "default",
        "authorities",
        "endpoints",
        "endpointsFile",
        "configFile",
        "resourcesFile",
        "tokenizers",
    ])?;
    let path = |name: &str| {
        let text = fields.get(name)?.text()?;
        Some(folder.join(text.value))
    };
    let name = fields.need("name").and_then(|at| at.text());
    if let Some(name) = &name
        && !is_name(&name.value)
    {
        let reason = format!(
            "{} is no name: letters, digits, -, _ and . only",
            shown(&name.value)
        );
        problems.add(name.place, &name.path, &reason);
    }
    let endpoints = endpoints(cursor, &fields, path("endpointsFile"));
    let authorities = fields
        .items("authorities", AUTHORITIES_MAX)
        .iter()
        .filter_map(authority)
        .collect();
    let tokenizers = tokenizers(&fields, folder);
    let name = name?;
    let settings = PoolSettings {
        name: name.value.clone(),
        is_default: fields
            .get("default")
            .and_then(|at| at.boolean())
            .unwrap_or_default(),
        authorities,
        endpoints: endpoints?,
        config: path("configFile").map_or(ConfigSource::FieldDefault, ConfigSource::File),
        resources_file: path("resourcesFile"),
        tokenizers,
    };
    Some((name, settings))
}

fn endpoints(
    cursor: &Cursor<'_>,
    fields: &Fields<'_>,
    file: Option<PathBuf>,
) -> Option<EndpointSource> {
    match (fields.get("endpoints"), file) {
        (None, Some(file)) => Some(EndpointSource::File(file)),
        (Some(list), None) => {
            let texts: Vec<String> = list
                .items(ENDPOINTS_MAX)?
                .iter()
                .filter_map(|item| Some(item.text()?.value))
                .collect();
            if texts.is_empty() {
                list.problem("names no endpoint");
            }
            Some(EndpointSource::Static(texts))
        }
        (Some(_), Some(_)) => {
            cursor.problem("endpoints and endpointsFile exclude each other");
            None
        }
        (None, None) => {
            if fields.get("endpointsFile").is_none() {
                cursor.problem("no workers: write endpoints or endpointsFile");
            }
            None
        }
    }
}

/// A host name as requests carry it; a port is dropped.
fn authority(cursor: &Cursor<'_>) -> Option<String> {
    let text = cursor.text()?.value.to_ascii_lowercase();
    let (host, port) = match text.rsplit_once(':') {
        // The colons of an IPv6 address are inside of its brackets.
        Some((host, port)) if !port.contains(']') => (host, Some(port)),
        _ => (text.as_str(), None),
    };
    let is_host = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '[' | ']' | ':');
    let is_port = port.is_none_or(|port| port.parse::<u16>().is_ok());
    if host.is_empty() || !host.chars().all(is_host) || !is_port {
        cursor.problem(&format!("{} is no host name", shown(&text)));
        return None;
    }
    Some(host.to_owned())
}

fn tokenizers(fields: &Fields<'_>, folder: &Path) -> Vec<TokenizerFolder> {
    let Some(written) = fields.get("tokenizers") else {
        return Vec::new();
    };
    let mut folders: Vec<TokenizerFolder> = Vec::new();
    let mut add = |at: &Cursor<'_>, mut read: TokenizerFolder| {
        read.folder = folder.join(&read.folder);
        if folders.iter().any(|earlier| earlier.model == read.model) {
            at.problem("a second tokenizer for this model");
        }
        folders.push(read);
    };
    if let Content::List(_) = written.node.content {
        for item in written.items(TOKENIZERS_MAX).unwrap_or_default() {
            if let Some(read) = item.read("text", str::parse::<TokenizerFolder>) {
                add(&item, read);
            }
        }
        return folders;
    }
    for (entry, at) in written.entries().unwrap_or_default() {
        if let Some(text) = at.text() {
            let read = TokenizerFolder {
                model: Some(entry.key.clone()),
                folder: text.value.into(),
            };
            add(&at, read);
        }
    }
    folders
}

fn is_name(name: &str) -> bool {
    name.len() <= NAME_CHARS_MAX
        && name
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.'))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(text: &str) -> Result<Vec<PoolSettings>, String> {
        parse("pools.yaml", text, Path::new("/etc/epp")).map_err(|errors| errors.to_string())
    }

    #[test]
    fn every_field_of_a_pool_is_read() {
        let pools = parsed(
            "pools:\n- name: chat\n  default: true\n  authorities: [Chat.Example.com, 'chat:8080', '[::1]:80']\n  endpointsFile: chat.yaml\n  configFile: /abs/config.yaml\n  resourcesFile: r.yaml\n  tokenizers: {qwen: q}\n- name: code\n  endpoints: [127.0.0.1:8000, '[::1]:8000']\n  tokenizers: [/m, x=y]\n",
        )
        .unwrap();
        let [chat, code] = pools.as_slice() else {
            panic!("{pools:?}")
        };
        assert_eq!((chat.name.as_str(), chat.is_default), ("chat", true));
        assert_eq!(chat.authorities, ["chat.example.com", "chat", "[::1]"]);
        assert_eq!(
            chat.endpoints,
            EndpointSource::File("/etc/epp/chat.yaml".into())
        );
        assert_eq!(chat.config, ConfigSource::File("/abs/config.yaml".into()));
        assert_eq!(chat.resources_file, Some("/etc/epp/r.yaml".into()));
        assert_eq!(chat.tokenizers[0].model.as_deref(), Some("qwen"));
        assert_eq!(chat.tokenizers[0].folder, Path::new("/etc/epp/q"));
        assert!(!code.is_default);
        assert_eq!(
            code.endpoints,
            EndpointSource::Static(vec!["127.0.0.1:8000".into(), "[::1]:8000".into()])
        );
        assert_eq!(code.config, ConfigSource::FieldDefault);
        assert_eq!(code.tokenizers[0].model, None);
        assert_eq!(code.tokenizers[1].folder, Path::new("/etc/epp/y"));
    }

    #[test]
    fn single_pool_is_the_default_one() {
        let pools = parsed("pools: [{name: a, endpoints: ['127.0.0.1:1']}]").unwrap();
        assert!(pools[0].is_default);
    }

    #[test]
    fn mistakes_are_named_with_their_place() {
        let cases = [
            ("pools: []\n", "pools.yaml:1:8: pools: names no pool"),
            (
                "pool: []\n",
                "pools.yaml:1:1: pool: unknown field; did you mean \"pools\"?\npools.yaml:1:1: the field pools is missing",
            ),
            (
                "pools: [{name: a}]\n",
                "pools.yaml:1:9: pools[0]: no workers: write endpoints or endpointsFile",
            ),
            (
                "pools: [{endpoints: [x]}]\n",
                "pools.yaml:1:9: pools[0]: the field name is missing",
            ),
            (
                "pools: [{name: a b, endpoints: [x]}]\n",
                "pools.yaml:1:16: pools[0].name: \"a b\" is no name: letters, digits, -, _ and . only",
            ),
            (
                "pools: [{name: a, endpoints: [x], endpointsFile: f}]\n",
                "pools.yaml:1:9: pools[0]: endpoints and endpointsFile exclude each other",
            ),
            (
                "pools: [{name: a, endpoints: []}]\n",
                "pools.yaml:1:30: pools[0].endpoints: names no endpoint",
            ),
            (
                "pools: [{name: a, endpoints: [x]}, {name: a, endpoints: [x]}]\n",
                "pools.yaml:1:43: pools[1].name: a second pool named \"a\"",
            ),
            (
                "pools: [{name: a, default: true, endpoints: [x]}, {name: b, default: true, endpoints: [x]}]\n",
                "pools.yaml:1:58: pools[1].name: a second default pool",
            ),
            (
                "pools: [{name: a, authorities: [h], endpoints: [x]}, {name: b, authorities: ['H:80'], endpoints: [x]}]\n",
                "pools.yaml:1:61: pools[1].name: the authority \"h\" belongs to the pool \"a\" already",
            ),
            (
                "pools: [{name: a, authorities: ['a/b'], endpoints: [x]}]\n",
                "pools.yaml:1:33: pools[0].authorities[0]: \"a/b\" is no host name",
            ),
            (
                "pools: [{name: a, endpoints: [x], tokenizers: [m=]}]\n",
                "pools.yaml:1:48: pools[0].tokenizers[0]: `m=` names no folder: write FOLDER or MODEL=FOLDER",
            ),
            (
                "pools: [{name: a, endpoints: [x], configfile: c}]\n",
                "pools.yaml:1:35: pools[0].configfile: unknown field; did you mean \"configFile\"?",
            ),
        ];
        for (text, expected) in cases {
            assert_eq!(parsed(text).unwrap_err(), expected, "{text}");
        }
    }

    #[test]
    fn file_that_is_not_there_is_named() {
        let error = load(Path::new("/no/such/pools.yaml"))
            .unwrap_err()
            .to_string();
        assert!(
            error.starts_with("/no/such/pools.yaml:1:1: No such file"),
            "{error}"
        );
    }
}
