//! What goes into the machine and what comes out, as plain values.

use std::borrow::Cow;
use std::sync::Arc;

use crate::ext_proc::authority::PoolHint;
use crate::ext_proc::head::RequestHead;
use crate::ext_proc::lease::LeaseToken;
use crate::ext_proc::outcome::Outcome;
use crate::ext_proc::refusal::Refusal;
use crate::ext_proc::usage::TokenUsage;
use crate::ext_proc::write_back::WriteBack;

/// A header's name, in lower case.
pub type Name = Cow<'static, str>;

/// How Envoy shows the body of one direction; it says so in `protocol_config` of the first message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BodyMode {
    None,
    Streamed,
    Buffered,
    FullDuplex,
}

/// The modes of both directions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Modes {
    pub request: BodyMode,
    pub response: BodyMode,
}

impl Modes {
    /// What the Endpoint Picker Protocol asks of a gateway, and what one that names no modes is
    /// taken to use.
    pub const PROTOCOL: Self = Self {
        request: BodyMode::FullDuplex,
        response: BodyMode::FullDuplex,
    };
}

/// How responses are watched.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Watch {
    /// By the access log where the gateway shows no response bodies, else on the stream.
    #[default]
    Auto,
    /// By the access log: streams close with the last answer of the request.
    AccessLog,
    /// On the stream, whatever the gateway shows of the response.
    Stream,
}

/// Something that happened on the stream or to the decision.
#[derive(Clone, Debug)]
pub enum Event {
    RequestHeaders {
        head: RequestHead,
        end_of_stream: bool,
    },
    RequestBody {
        bytes: Vec<u8>,
        end_of_stream: bool,
    },
    RequestTrailers,
    /// A piece of the request's body came that the process has no room for.
    NoMemory,
    /// The decision asked for by [`Action::Decide`] is there.
    Picked(Destination),
    /// The decision asked for by [`Action::Decide`] is that no endpoint gets the request.
    Refused(Refusal),
    /// The decision asked for by [`Action::Decide`] took too long.
    DecisionTimedOut,
    /// The exchange is taken off its endpoint. Without effect once the response has begun.
    Interrupted(Refusal),
    ResponseHeaders {
        status: Option<u16>,
        has_content_length: bool,
        end_of_stream: bool,
    },
    ResponseBody {
        bytes: Vec<u8>,
        end_of_stream: bool,
    },
    ResponseTrailers,
    /// The gRPC stream is over, for whatever reason.
    StreamEnded,
}

/// What rides along with messages in `metadata_context`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Context {
    /// The endpoint that served the response, where the gateway reports it.
    pub served: Option<String>,
    /// The entries of the subset hint; present but empty means that no endpoint is eligible.
    pub subset: Option<Arc<[String]>>,
}

/// Where the request goes, and what changes on its way.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Destination {
    /// `ip:port`, or an ordered list `ip:port,ip:port,...`.
    pub endpoints: String,
    /// Score by `ip:port` of every scored candidate; empty unless scores are to be emitted.
    pub scores: Vec<(String, f64)>,
    /// Request headers to set, such as `x-prefiller-host-port`. They replace what the client sent.
    pub set_headers: Vec<(Name, String)>,
    /// Request headers to remove, beside the client's copies of routing headers.
    pub remove_headers: Vec<Name>,
    /// The body to send on in place of the one that came. Only where the body is held (full duplex
    /// and `BUFFERED`); the content length is stated anew for it. A chunk should stay below 62,000
    /// bytes, as some gateways take no larger one.
    pub rewritten_body: Option<Vec<Vec<u8>>>,
    /// The lease of the exchange. The shell fills it in where the exchange will be parked.
    pub token: Option<LeaseToken>,
    /// Response headers to set. Stream mode only.
    pub response_headers: Vec<(Name, String)>,
    /// Whether the response names the endpoint that served it, as conformance tests ask. Stream
    /// mode only.
    pub echo_served: bool,
    /// The model name to write back into the response. Stream mode with full-duplex responses only.
    pub model_write_back: Option<WriteBack>,
}

/// What the shell does for the machine, in the order given.
#[derive(Clone, Debug, PartialEq)]
pub enum Action {
    Answer(Answer),
    /// Start to decide on [`Machine::intake`](super::Machine::intake); its end comes back as an
    /// event.
    Decide,
    /// The decision under way is of no use any more.
    CancelDecision,
    /// The first byte of the response body went by.
    FirstByte,
    /// The exchange is over as far as accounting goes; sent once.
    Finished(Outcome),
    /// The exchange goes on without the stream, under its lease; sent once, in place of
    /// [`Self::Finished`].
    Park,
    /// Close the stream: nothing more will be answered.
    Close,
}

/// One message to Envoy.
#[derive(Clone, Debug, PartialEq)]
pub enum Answer {
    RequestHeaders(RouteChange),
    RequestBody(BodyAnswer, RouteChange),
    RequestTrailers(RouteChange),
    ResponseHeaders(HeaderChange),
    /// The usage rides on the answer that ends the response.
    ResponseBody(BodyAnswer, Option<TokenUsage>),
    ResponseTrailers(Option<TokenUsage>),
    Immediate(Refusal),
}

/// How a body message is answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BodyAnswer {
    /// Leave the body as it is: legal in `BUFFERED` and `STREAMED`.
    Continue,
    /// Replace the whole body: legal in `BUFFERED`.
    Replace(Vec<u8>),
    /// Send these bytes on: the only legal answer in `FULL_DUPLEX_STREAMED`.
    Chunk { bytes: Vec<u8>, end_of_stream: bool },
}

/// What an answer changes about the headers of its direction.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HeaderChange {
    pub set: Vec<(Name, String)>,
    pub remove: Vec<Name>,
}

/// What an answer changes about the route. The default changes nothing.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct RouteChange {
    pub destination: Option<Destination>,
    /// Headers beside the destination's own. What is removed are client copies of routing headers
    /// that must not reach an endpoint, and what the decision names.
    pub headers: HeaderChange,
}

/// What a decision may look at. Everything is shared, so that it can be handed to another task.
#[derive(Clone, Debug, Default)]
pub struct Intake {
    pub head: Arc<RequestHead>,
    /// The body in the pieces it came in; empty where the pick does not wait for a body.
    pub body: Arc<Vec<Vec<u8>>>,
    pub subset: Option<Arc<[String]>>,
    /// What the gateway's call says about the pool it asks for.
    pub pool: Arc<PoolHint>,
}
