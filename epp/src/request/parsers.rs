//! Which parser reads a request: the longest path suffix among the APIs in use wins.
//!
//! A suffix counts only from the beginning of a path segment on, so `/my-completions` is no
//! completion. A request whose content type says gRPC is read by gRPC APIs only, and the other way
//! round; without a content type the path alone decides.

use std::sync::LazyLock;

use super::{
    InferenceRequest, ParseError, anthropic, openai, passthrough, sglang, vertex_ai, vllm_grpc,
    vllm_http,
};
use crate::config::plugins::{NoParameters, PluginKind, PluginType, Stage, check};

/// Every parser. A new one is a file and a line here, and one in [`PLUGIN_TYPES`].
const ALL: &[&ParserType] = &[
    &openai::TYPE,
    &anthropic::TYPE,
    &vllm_http::TYPE,
    &vllm_grpc::TYPE,
    &sglang::TYPE,
    &vertex_ai::TYPE,
    &passthrough::TYPE,
];

/// The plugin types of this room.
pub const PLUGIN_TYPES: &[PluginType] = &[
    openai::TYPE.plugin,
    anthropic::TYPE.plugin,
    vllm_http::TYPE.plugin,
    vllm_grpc::TYPE.plugin,
    sglang::TYPE.plugin,
    vertex_ai::TYPE.plugin,
    passthrough::TYPE.plugin,
];

/// The parsers in use where the operator chooses none: the field's defaults.
const DEFAULT: &[&ParserType] = &[
    &openai::TYPE,
    &anthropic::TYPE,
    &vllm_http::TYPE,
    &passthrough::TYPE,
];

/// What of a request's head tells its API.
#[derive(Clone, Copy, Debug)]
pub struct RequestLine<'a> {
    pub method: &'a str,
    /// With or without a query, which is ignored.
    pub path: &'a str,
    pub content_type: Option<&'a str>,
}

/// The parsers in use.
#[derive(Clone, Debug)]
pub struct Parsers {
    /// Of two equal suffixes the first wins.
    apis: Vec<&'static Api>,
}

/// A name that is no parser's.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("there is no parser of type {type_name:?}")]
pub struct UnknownParser {
    pub type_name: String,
}

impl Parsers {
    /// The parsers of these plugin type names. Where two know the same path, the first is used.
    pub fn new(type_names: &[&str]) -> Result<Self, UnknownParser> {
        let types = type_names.iter().map(|name| {
            let found = ALL.iter().find(|known| known.plugin.name == *name);
            found.copied().ok_or_else(|| UnknownParser {
                type_name: (*name).to_owned(),
            })
        });
        types
            .collect::<Result<Vec<_>, _>>()
            .map(|types| Self::of(&types))
    }

    fn of(types: &[&'static ParserType]) -> Self {
        Self {
            apis: types.iter().flat_map(|known| known.apis).collect(),
        }
    }

    /// Reads one request. What no parser knows passes through, and so does everything but a POST.
    pub fn parse(
        &self,
        line: &RequestLine<'_>,
        body: &[u8],
    ) -> Result<InferenceRequest, ParseError> {
        match self.api_of(line) {
            Some(api) => (api.parse)(body),
            None => Ok(InferenceRequest::passthrough()),
        }
    }

    fn api_of(&self, line: &RequestLine<'_>) -> Option<&'static Api> {
        if line.method != "POST" {
            return None;
        }
        let path = line.path.split(['?', '#']).next().unwrap_or_default();
        let path = path.strip_suffix('/').unwrap_or(path);
        let is_grpc = line.content_type.map(is_grpc);
        let mut best: Option<&'static Api> = None;
        for api in &self.apis {
            let is_longer = best.is_none_or(|best| api.suffix.len() > best.suffix.len());
            let speaks = is_grpc.is_none_or(|is_grpc| is_grpc == (api.wire == Wire::Grpc));
            if is_longer && speaks && api.claims(path) {
                best = Some(api);
            }
        }
        best
    }
}

impl Default for Parsers {
    fn default() -> Self {
        Self::of(DEFAULT)
    }
}

/// Reads one request by the default parsers.
pub fn parse(method: &str, path: &str, body: &[u8]) -> Result<InferenceRequest, ParseError> {
    static PARSERS: LazyLock<Parsers> = LazyLock::new(Parsers::default);
    let line = RequestLine {
        method,
        path,
        content_type: None,
    };
    PARSERS.parse(&line, body)
}

/// A parser as a plugin type, and the APIs that it knows.
#[derive(Debug)]
pub(super) struct ParserType {
    pub(super) plugin: PluginType,
    pub(super) apis: &'static [Api],
}

impl ParserType {
    /// No parser has parameters.
    pub(super) const fn new(name: &'static str, apis: &'static [Api]) -> Self {
        Self {
            plugin: PluginType {
                name,
                kind: PluginKind::Parser,
                stage: Stage::Beta,
                check: check::<NoParameters>,
            },
            apis,
        }
    }
}

/// One API: where it is found, and how its bodies are read.
#[derive(Debug)]
pub(super) struct Api {
    /// The end of its paths, without a leading slash.
    suffix: &'static str,
    wire: Wire,
    parse: fn(&[u8]) -> Result<InferenceRequest, ParseError>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Wire {
    Json,
    Grpc,
}

impl Api {
    pub(super) const fn json(
        suffix: &'static str,
        parse: fn(&[u8]) -> Result<InferenceRequest, ParseError>,
    ) -> Self {
        Self {
            suffix,
            wire: Wire::Json,
            parse,
        }
    }

    /// `suffix` is `Service/Method`; any package may stand before the service.
    pub(super) const fn grpc(
        suffix: &'static str,
        parse: fn(&[u8]) -> Result<InferenceRequest, ParseError>,
    ) -> Self {
        Self {
            suffix,
            wire: Wire::Grpc,
            parse,
        }
    }

    /// Whether the path ends in whole segments equal to the suffix.
    fn claims(&self, path: &str) -> bool {
        path.strip_suffix(self.suffix).is_some_and(|rest| {
            rest.is_empty()
                || rest.ends_with('/')
                || (self.wire == Wire::Grpc && rest.ends_with('.'))
        })
    }
}

/// `application/grpc`, `application/grpc+proto` and the like.
fn is_grpc(content_type: &str) -> bool {
    const GRPC: &str = "application/grpc";
    let start = content_type.trim_ascii_start().get(..GRPC.len());
    start.is_some_and(|start| start.eq_ignore_ascii_case(GRPC))
}

#[cfg(test)]
mod tests {
    use super::super::RequestKind;
    use super::*;

    const EVERY: &[&str] = &[
        "openai-parser",
        "anthropic-parser",
        "vllmhttp-parser",
        "vllmgrpc-parser",
        "sglanghttp-parser",
        "vertexai-parser",
        "passthrough-parser",
    ];

    fn suffix(parsers: &Parsers, path: &str, content_type: Option<&str>) -> Option<&'static str> {
        let line = RequestLine {
            method: "POST",
            path,
            content_type,
        };
        parsers.api_of(&line).map(|api| api.suffix)
    }

    #[test]
    fn plugin_types_are_the_fields_names() {
        let names: Vec<&str> = PLUGIN_TYPES.iter().map(|plugin| plugin.name).collect();
        assert_eq!(names, EVERY);
        assert_eq!(ALL.len(), PLUGIN_TYPES.len());
        for (known, plugin) in ALL.iter().zip(PLUGIN_TYPES) {
            assert_eq!(known.plugin.name, plugin.name);
            assert_eq!(plugin.kind, PluginKind::Parser);
            let error = (plugin.check)(&serde_json::json!({"nonsense": 1})).unwrap_err();
            assert!(error.to_string().contains("nonsense"), "{error}");
        }
    }

    #[test]
    fn longest_suffix_of_whole_segments_wins() {
        let parsers = Parsers::new(EVERY).unwrap();
        let cases = [
            ("/v1/chat/completions", Some("chat/completions")),
            (
                "/tenant/a/v1/chat/completions?x=/v1/completions",
                Some("chat/completions"),
            ),
            ("/v1/chat/completions/", Some("chat/completions")),
            (
                "/v1/chat/completions/render",
                Some("chat/completions/render"),
            ),
            ("/v1/completions", Some("completions")),
            ("/v1/completions/render", Some("completions/render")),
            ("/v1/my-completions", None),
            ("/v1/completions.old", None),
            ("/v1/messages", Some("messages")),
            ("/v1/messages/count_tokens", Some("messages/count_tokens")),
            ("/generate", Some("generate")),
            ("/inference/v1/generate", Some("inference/v1/generate")),
            (
                "/vllm.grpc.engine.VllmEngine/Generate",
                Some("VllmEngine/Generate"),
            ),
            ("/NotVllmEngine/Generate", None),
            (
                "/google.cloud.aiplatform.v1beta1.PredictionService/RawPredict",
                Some("PredictionService/RawPredict"),
            ),
        ];
        for (path, expected) in cases {
            assert_eq!(suffix(&parsers, path, None), expected, "{path}");
        }
    }

    #[test]
    fn a_suffix_counts_among_the_parsers_in_use_only() {
        let parsers = Parsers::default();
        assert_eq!(suffix(&parsers, "/generate", None), None);
        assert_eq!(suffix(&parsers, "/VllmEngine/Generate", None), None);
        let sglang = Parsers::new(&["sglanghttp-parser"]).unwrap();
        assert_eq!(
            suffix(&sglang, "/inference/v1/generate", None),
            Some("generate")
        );
        assert_eq!(suffix(&sglang, "/v1/completions", None), None);
    }

    #[test]
    fn content_type_tells_grpc_from_json() {
        let parsers = Parsers::new(EVERY).unwrap();
        let grpc = "/vllm.grpc.engine.VllmEngine/Generate";
        for content_type in ["application/grpc", " Application/gRPC+proto"] {
            assert!(suffix(&parsers, grpc, Some(content_type)).is_some());
            assert!(suffix(&parsers, "/v1/completions", Some(content_type)).is_none());
        }
        for content_type in ["application/json", "", "é"] {
            assert!(suffix(&parsers, grpc, Some(content_type)).is_none());
            assert!(suffix(&parsers, "/v1/completions", Some(content_type)).is_some());
        }
    }

    #[test]
    fn unknown_parsers_are_named() {
        let error = Parsers::new(&["openai-parser", "openai-parsre"]).unwrap_err();
        assert_eq!(
            error.to_string(),
            "there is no parser of type \"openai-parsre\""
        );
    }

    #[test]
    fn what_no_parser_knows_passes_unread() {
        for (method, path) in [
            ("GET", "/v1/models"),
            ("GET", "/v1/completions"),
            ("POST", "/"),
            ("", ""),
        ] {
            let request = parse(method, path, b"\xff not json").expect("not read");
            assert_eq!(request, InferenceRequest::passthrough(), "{method} {path}");
        }
        let passthrough = Parsers::new(&["passthrough-parser"]).unwrap();
        let line = RequestLine {
            method: "POST",
            path: "/v1/completions",
            content_type: None,
        };
        let request = passthrough.parse(&line, b"passthrough-parser").unwrap();
        assert_eq!(request.kind, RequestKind::Passthrough);
    }
}
