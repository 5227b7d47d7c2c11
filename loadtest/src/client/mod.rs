//! HTTP as the load generator and the tests speak it: plain requests, and chats whose tokens are timed.

mod chat;
mod http;
pub mod sse;
mod stream;
mod tls;

pub use chat::{Answer, ChatClient, ChatOptions, Message, Role, SERVED_BY};
pub use http::{HttpClient, HttpReply};
pub(crate) use stream::{AnswerStream, StreamError, beginning};
pub(crate) use tls::TlsFailure;
pub use tls::Trust;
