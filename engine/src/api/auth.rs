//! API keys: a bearer token in front of everything that computes.
//!
//! As in vLLM the guard stands before `/v1`, `/v2` and `/inference` and lets health, metrics and the tokenizer
//! through, because those who ask for them (probes, scrapers, pickers) hold no keys. `/invocations` reaches the same
//! handlers as `/v1` does, so it is guarded as well.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use serde_json::json;

/// Paths that begin with one of these need a key.
const GUARDED: &[&str] = &["/v1", "/v2", "/inference", "/invocations"];

/// Answers 401 to a guarded request without one of `keys`.
pub(super) async fn guard(
    State(keys): State<Arc<[String]>>,
    request: Request,
    next: Next,
) -> Response {
    let open = request.method() == Method::OPTIONS || !is_guarded(request.uri().path());
    if open || holds_key(request.headers(), &keys) {
        return next.run(request).await;
    }
    let mut response = (
        StatusCode::UNAUTHORIZED,
        Json(json!({"error": "Unauthorized"})),
    )
        .into_response();
    let bearer = HeaderValue::from_static("Bearer");
    response
        .headers_mut()
        .insert(header::WWW_AUTHENTICATE, bearer);
    response
}

fn is_guarded(path: &str) -> bool {
    GUARDED.iter().any(|prefix| path.starts_with(prefix))
}

fn holds_key(headers: &HeaderMap, keys: &[String]) -> bool {
    let token = headers
        .get(header::AUTHORIZATION)
        .and_then(|value| value.to_str().ok())
        .and_then(|value| value.split_once(' '))
        .filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer"))
        .map(|(_, token)| token.trim());
    // Every key is compared, so that the time taken does not say which one was nearly right.
    token.is_some_and(|token| {
        keys.iter().fold(false, |found, key| {
            found | equal(token.as_bytes(), key.as_bytes())
        })
    })
}

/// Compares in a time that depends on the lengths alone.
fn equal(left: &[u8], right: &[u8]) -> bool {
    left.len() == right.len()
        && left
            .iter()
            .zip(right)
            .fold(0, |differs, (a, b)| differs | (a ^ b))
            == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn passes(authorization: &str) -> bool {
        let mut headers = HeaderMap::new();
        headers.insert(header::AUTHORIZATION, authorization.parse().unwrap());
        holds_key(&headers, &["first".to_owned(), "second".to_owned()])
    }

    #[test]
    fn any_of_the_keys_opens_and_nothing_else_does() {
        for value in ["Bearer first", "bearer second", "BEARER  second"] {
            assert!(passes(value), "{value}");
        }
        for value in [
            "Bearer third",
            "Bearer firs",
            "Bearer first2",
            "Basic first",
            "first",
            "Bearer ",
        ] {
            assert!(!passes(value), "{value}");
        }
        assert!(!holds_key(&HeaderMap::new(), &["first".to_owned()]));
    }

    #[test]
    fn what_computes_is_guarded() {
        for path in [
            "/v1/models",
            "/v2/x",
            "/inference/v1/generate",
            "/invocations",
        ] {
            assert!(is_guarded(path), "{path}");
        }
        for path in ["/health", "/metrics", "/tokenize", "/ping"] {
            assert!(!is_guarded(path), "{path}");
        }
    }
}
