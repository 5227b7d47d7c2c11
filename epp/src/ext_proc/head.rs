//! The headers of one request, as Envoy sent them.
//!
//! Keys arrive in lower case and values as raw bytes. The list is moved out of the gRPC message and
//! searched linearly: a request carries some twenty headers and the picker asks for five of them,
//! so a map would cost more than it saves.

/// Headers in the order they came, pseudo headers (`:method`, `:path`) included.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RequestHead {
    headers: Vec<(String, Vec<u8>)>,
}

impl RequestHead {
    pub fn new(headers: Vec<(String, Vec<u8>)>) -> Self {
        Self { headers }
    }

    /// The first value under this lower-case name, if it is there and is UTF-8.
    pub fn get(&self, name: &str) -> Option<&str> {
        let (_, value) = self.headers.iter().find(|(key, _)| key == name)?;
        std::str::from_utf8(value).ok()
    }

    pub fn contains(&self, name: &str) -> bool {
        self.headers.iter().any(|(key, _)| key == name)
    }

    /// The request method, or an empty string where the gateway sent none.
    pub fn method(&self) -> &str {
        self.get(":method").unwrap_or_default()
    }

    /// The request path with its query, or an empty string where the gateway sent none.
    pub fn path(&self) -> &str {
        self.get(":path").unwrap_or_default()
    }

    /// The body length the client announced, if it did so with a number.
    pub fn content_length(&self) -> Option<u64> {
        self.get("content-length")?.parse().ok()
    }
}

impl<const N: usize> From<[(&str, &str); N]> for RequestHead {
    fn from(headers: [(&str, &str); N]) -> Self {
        Self::new(
            headers
                .map(|(name, value)| (name.to_owned(), value.as_bytes().to_vec()))
                .to_vec(),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_the_first_value_and_survives_bytes_that_are_not_text() {
        let mut headers = vec![(":path".to_owned(), b"/v1/models".to_vec())];
        headers.push(("x-blob".to_owned(), vec![0xff, 0xfe]));
        headers.push(("content-length".to_owned(), b"12".to_vec()));
        headers.push(("content-length".to_owned(), b"99".to_vec()));
        let head = RequestHead::new(headers);
        assert_eq!(head.path(), "/v1/models");
        assert_eq!(head.method(), "");
        assert_eq!(head.get("x-blob"), None);
        assert!(head.contains("x-blob"));
        assert_eq!(head.content_length(), Some(12));
    }
}
