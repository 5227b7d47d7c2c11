//! Which endpoint a session belongs to: what the session filter and the session scorer share.
//!
//! There are two strategies, the field's (`pkg/epp/framework/plugins/scheduling/util/
//! sessionaffinity` of llm-d-router). With `encoded_endpoint_header` the client carries the answer:
//! each response names its endpoint in a header, base64 of its name, and the client sends it back;
//! nothing is kept here. With `session_id` the client only names its session, and the endpoint of
//! its first pick is remembered here for as long as the session is used.
//!
//! A remembered session moves when its endpoint is no longer among the candidates. It stays when
//! another endpoint was merely preferred, and then its time runs on: a session that keeps going
//! elsewhere is forgotten after the TTL.
//!
//! Session names are hashed, so that their length costs no memory.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use parking_lot::Mutex;
use pointsman_proto::headers;
use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::xxh3_128;

use super::by_member::ByMember;
use super::plugin::Context;
use super::recent::Recent;
use crate::config::plugins::{self, ParameterError};
use crate::fleet::{Endpoint, EndpointId, Generation};

/// Most sessions that are remembered; the one used longest ago makes room.
pub const SESSIONS_MAX: usize = 65_536;

/// Expired sessions that one pick forgets at most.
const SWEEP_MAX: usize = 8;

/// The field's parameters of both session plugins.
#[derive(Clone, PartialEq, Default, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "camelCase")]
pub struct Parameters {
    pub strategy: Strategy,
    pub encoded_endpoint_header_config: EncodedEndpointHeader,
    pub session_id_config: SessionId,
    /// Which profile's pick the session is tied to. It is always the pick of the profile that the
    /// plugin stands in, so the name has no effect.
    pub profile_name: String,
}

/// Who remembers.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Strategy {
    /// The client, in a header that names the endpoint.
    #[default]
    EncodedEndpointHeader,
    /// The endpoint picker, by a name of the session.
    SessionId,
}

/// Parameters of the strategy `encoded_endpoint_header`.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "camelCase")]
pub struct EncodedEndpointHeader {
    /// The header in both directions.
    pub header: String,
}

impl Default for EncodedEndpointHeader {
    fn default() -> Self {
        Self {
            header: headers::SESSION_TOKEN.to_owned(),
        }
    }
}

/// Parameters of the strategy `session_id`.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "camelCase")]
pub struct SessionId {
    /// Where the session's name is looked for; the first that is not empty counts.
    pub sources: Vec<Source>,
    /// Seconds after which an unused session is forgotten.
    pub eviction_ttl_seconds: f64,
    /// Seconds between the field's sweeps. Every pick sweeps a little here, so it has no effect.
    pub eviction_sweep_seconds: f64,
}

impl Default for SessionId {
    fn default() -> Self {
        Self {
            sources: Vec::new(),
            eviction_ttl_seconds: 300.0,
            eviction_sweep_seconds: 10.0,
        }
    }
}

/// One place to look for the session's name.
#[derive(Clone, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "camelCase")]
pub struct Source {
    pub header: String,
    pub attribute: String,
    pub producer: String,
}

impl plugins::Parameters for Parameters {
    fn validate(&self) -> Result<(), ParameterError> {
        let config = &self.session_id_config;
        for (at, source) in config.sources.iter().enumerate() {
            let path = |field: &str| format!("sessionIdConfig.sources[{at}].{field}");
            if !source.attribute.is_empty() || !source.producer.is_empty() {
                return Err(ParameterError::new(
                    path("attribute"),
                    "requests have no attributes here; name the header that it is made from",
                ));
            }
            if source.header.trim().is_empty() {
                return Err(ParameterError::new(path("header"), "must not be empty"));
            }
        }
        let seconds = [
            ("evictionTtlSeconds", config.eviction_ttl_seconds),
            ("evictionSweepSeconds", config.eviction_sweep_seconds),
        ];
        for (name, value) in seconds {
            // Zero is the field's way to write the default.
            if !(value >= 0.0 && value.is_finite()) {
                return Err(ParameterError::new(
                    format!("sessionIdConfig.{name}"),
                    format!("must be a number of seconds above 0, not {value}"),
                ));
            }
        }
        Ok(())
    }
}

/// Knows the endpoint of a session.
#[derive(Debug)]
pub struct SessionAffinity {
    how: How,
}

#[derive(Debug)]
enum How {
    Token {
        header: String,
        tokens: ByMember<String>,
    },
    Id {
        sources: Vec<String>,
        ttl_ms: u64,
        bound: Mutex<Recent<u128, Bound>>,
    },
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Bound {
    endpoint: (EndpointId, Generation),
    used_at_ms: u64,
    /// Whether its endpoint was not among the candidates when it was last asked for.
    missed: bool,
}

impl From<&Parameters> for SessionAffinity {
    fn from(parameters: &Parameters) -> Self {
        let or = |given: &str, default: &str| {
            let given = given.trim().to_ascii_lowercase();
            if given.is_empty() {
                default.to_owned()
            } else {
                given
            }
        };
        let config = &parameters.session_id_config;
        let how = match parameters.strategy {
            Strategy::EncodedEndpointHeader => How::Token {
                header: or(
                    &parameters.encoded_endpoint_header_config.header,
                    headers::SESSION_TOKEN,
                ),
                tokens: ByMember::default(),
            },
            Strategy::SessionId => How::Id {
                sources: if config.sources.is_empty() {
                    vec![headers::SESSION_ID.to_owned()]
                } else {
                    let named = config.sources.iter();
                    named.map(|source| or(&source.header, "")).collect()
                },
                ttl_ms: milliseconds(config.eviction_ttl_seconds),
                bound: Mutex::new(Recent::new(SESSIONS_MAX)),
            },
        };
        Self { how }
    }
}

impl SessionAffinity {
    /// The place among the candidates of the one that the request's session belongs to.
    pub fn find(&self, context: &Context<'_>, candidates: &[usize]) -> Option<usize> {
        match &self.how {
            How::Token { header, tokens } => {
                let token = context.request.headers.get(header)?.trim();
                if token.is_empty() {
                    return None;
                }
                tokens.with(&context.snapshot.members, token_of, |tokens| {
                    let is_meant = |at: &usize| tokens.get(*at).is_some_and(|known| known == token);
                    candidates.iter().position(is_meant)
                })
            }
            How::Id {
                sources,
                ttl_ms,
                bound,
            } => {
                let session = session(context, sources)?;
                let known = *bound.lock().get(&session)?;
                if context.now_ms.saturating_sub(known.used_at_ms) > *ttl_ms {
                    return None;
                }
                let found = candidates
                    .iter()
                    .position(|at| identity(context.member(*at)) == known.endpoint);
                if known.missed != found.is_none()
                    && let Some(held) = bound.lock().get_mut(&session)
                {
                    held.missed = found.is_none();
                }
                found
            }
        }
    }

    /// Ties a new session to the endpoint that was picked, keeps a known one alive, and moves one
    /// whose endpoint was not there.
    pub fn picked(&self, context: &Context<'_>, endpoints: &[usize]) {
        let How::Id {
            sources,
            ttl_ms,
            bound,
        } = &self.how
        else {
            return;
        };
        let (Some(session), Some(first)) = (session(context, sources), endpoints.first()) else {
            return;
        };
        let fresh = Bound {
            endpoint: identity(context.member(*first)),
            used_at_ms: context.now_ms,
            missed: false,
        };
        let mut bound = bound.lock();
        sweep(&mut bound, context.now_ms, *ttl_ms);
        let stays_elsewhere = bound.get(&session).is_some_and(|known| {
            let alive = context.now_ms.saturating_sub(known.used_at_ms) <= *ttl_ms;
            alive && !known.missed && known.endpoint != fresh.endpoint
        });
        if !stays_elsewhere {
            bound.put(session, fresh);
        }
    }

    /// The header by which the client comes back to the picked endpoint.
    pub fn response_headers(
        &self,
        context: &Context<'_>,
        endpoints: &[usize],
        headers: &mut Vec<(String, String)>,
    ) {
        if let (How::Token { header, .. }, Some(first)) = (&self.how, endpoints.first()) {
            headers.push((header.clone(), token_of(context.member(*first))));
        }
    }
}

/// What the client sends back to reach this endpoint: base64, standard alphabet with padding, of
/// its name.
pub fn token_of(endpoint: &Endpoint) -> String {
    STANDARD.encode(&endpoint.spec.name)
}

fn session(context: &Context<'_>, sources: &[String]) -> Option<u128> {
    let named = |source: &String| {
        let name = context.request.headers.get(source)?.trim();
        (!name.is_empty()).then(|| xxh3_128(name.as_bytes()))
    };
    sources.iter().find_map(named)
}

fn identity(endpoint: &Endpoint) -> (EndpointId, Generation) {
    (endpoint.id, endpoint.generation)
}

/// Sessions are in the order of their last use, so the expired ones are the oldest.
fn sweep(bound: &mut Recent<u128, Bound>, now_ms: u64, ttl_ms: u64) {
    for _ in 0..SWEEP_MAX {
        let expired = bound
            .oldest()
            .is_some_and(|(_, known)| now_ms.saturating_sub(known.used_at_ms) > ttl_ms);
        if !expired {
            return;
        }
        bound.pop_oldest();
    }
}

fn milliseconds(seconds: f64) -> u64 {
    let seconds = if seconds > 0.0 {
        seconds
    } else {
        SessionId::default().eviction_ttl_seconds
    };
    (seconds * 1000.0) as u64
}

#[cfg(test)]
mod tests;
