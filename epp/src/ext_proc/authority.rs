//! What the gateway's call itself says: which pool it asks for.
//!
//! One picker can serve several pools. A gateway that is configured per pool says so in the call's
//! metadata ([`headers::POOL`]), or by the authority it calls, which is the name of the pool's
//! picker service. The gRPC library hands a service the metadata and keeps the authority to itself,
//! so a thin layer around the service writes it into the request's extensions.

use std::convert::Infallible;
use std::sync::Arc;

use pointsman_proto::headers;
use tonic::body::Body;
use tonic::codegen::http::{self, header};
use tonic::codegen::{Context, Poll, Service};
use tonic::server::NamedService;

/// What a call says about the pool it wants. Both are the caller's words, unverified.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PoolHint {
    /// `x-pointsman-pool` of the call's metadata.
    pub pool: Option<String>,
    /// The call's authority, `host` or `host:port`.
    pub authority: Option<String>,
}

impl PoolHint {
    /// Reads the hint off a call that went through [`WithAuthority`].
    pub fn of<T>(request: &tonic::Request<T>) -> Self {
        let pool = request.metadata().get(headers::POOL);
        let authority = request.extensions().get::<Authority>();
        Self {
            pool: pool
                .and_then(|value| value.to_str().ok())
                .map(|name| name.trim().to_owned())
                .filter(|name| !name.is_empty()),
            authority: authority.map(|authority| authority.0.to_string()),
        }
    }
}

#[derive(Clone, Debug)]
struct Authority(Arc<str>);

/// A service whose requests know their authority.
#[derive(Clone, Debug)]
pub struct WithAuthority<S>(pub S);

impl<S: NamedService> NamedService for WithAuthority<S> {
    const NAME: &'static str = S::NAME;
}

impl<S> Service<http::Request<Body>> for WithAuthority<S>
where
    S: Service<http::Request<Body>, Error = Infallible>,
{
    type Response = S::Response;
    type Error = Infallible;
    type Future = S::Future;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.0.poll_ready(context)
    }

    fn call(&mut self, mut request: http::Request<Body>) -> S::Future {
        if let Some(authority) = authority(&request) {
            request.extensions_mut().insert(Authority(authority));
        }
        self.0.call(request)
    }
}

/// HTTP/2 puts the authority into the target; a `host` header does where it is missing.
fn authority<T>(request: &http::Request<T>) -> Option<Arc<str>> {
    let target = request.uri().authority().map(http::uri::Authority::as_str);
    let host = request.headers().get(header::HOST);
    let host = host.and_then(|value| value.to_str().ok());
    target.or(host).map(Arc::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn authority_is_the_target_or_the_host_header() {
        let request = |uri: &str, host: Option<&str>| {
            let mut builder = http::Request::builder().uri(uri);
            if let Some(host) = host {
                builder = builder.header("host", host);
            }
            authority(&builder.body(()).expect("a request"))
        };
        assert_eq!(
            request("http://[::1]:9002/x", None).as_deref(),
            Some("[::1]:9002")
        );
        assert_eq!(
            request("/x", Some("epp.ns:9002")).as_deref(),
            Some("epp.ns:9002")
        );
        assert_eq!(request("/x", None), None);
    }

    #[test]
    fn blank_pool_is_no_hint() {
        let mut request = tonic::Request::new(());
        request
            .metadata_mut()
            .insert(headers::POOL, " ".parse().expect("a value"));
        assert_eq!(PoolHint::of(&request), PoolHint::default());
        request
            .metadata_mut()
            .insert(headers::POOL, "ns/chat".parse().expect("a value"));
        assert_eq!(PoolHint::of(&request).pool.as_deref(), Some("ns/chat"));
    }
}
