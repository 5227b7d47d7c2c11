//! Query strings of the endpoints that take one: names that repeat, and errors in the form of all others.

use axum::extract;
use axum::http::Uri;

use super::error::ApiError;

/// The parameters in their order.
#[derive(Debug)]
pub(super) struct Query(Vec<(String, String)>);

impl Query {
    pub(super) fn of(uri: &Uri) -> Result<Self, ApiError> {
        let parsed = extract::Query::<Vec<(String, String)>>::try_from_uri(uri);
        let extract::Query(parameters) =
            parsed.map_err(|error| ApiError::bad_request(error.to_string()))?;
        Ok(Self(parameters))
    }

    /// The values of a parameter that may repeat.
    pub(super) fn all<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a str> {
        let named = self.0.iter().filter(move |(key, _)| key == name);
        named.map(|(_, value)| value.as_str())
    }

    /// The value that counts where a parameter repeats.
    pub(super) fn last(&self, name: &str) -> Option<&str> {
        let named = self.0.iter().rev().find(|(key, _)| key == name);
        named.map(|(_, value)| value.as_str())
    }

    /// A truth value, in the spellings that Python's web frameworks take.
    pub(super) fn flag(&self, name: &str, default: bool) -> Result<bool, ApiError> {
        let Some(value) = self.last(name) else {
            return Ok(default);
        };
        match value.to_ascii_lowercase().as_str() {
            "1" | "true" | "t" | "yes" | "y" | "on" => Ok(true),
            "0" | "false" | "f" | "no" | "n" | "off" => Ok(false),
            _ => Err(ApiError::field(
                name,
                format!("must be true or false, got {value:?}"),
            )),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn query(text: &str) -> Query {
        Query::of(&format!("/x?{text}").parse().unwrap()).unwrap()
    }

    #[test]
    fn parameters_repeat_and_the_last_one_counts() {
        let query = query("tags=a&mode=wait&tags=b%20c&mode=keep");
        assert_eq!(query.all("tags").collect::<Vec<_>>(), ["a", "b c"]);
        assert_eq!(query.last("mode"), Some("keep"));
        assert_eq!(query.last("level"), None);
        assert!(Query::of(&"/x".parse().unwrap()).unwrap().0.is_empty());
    }

    #[test]
    fn a_flag_is_true_or_false() {
        assert!(query("on=True").flag("on", false).unwrap());
        assert!(!query("on=0").flag("on", true).unwrap());
        assert!(query("").flag("on", true).unwrap());
        let error = query("on=perhaps").flag("on", true).unwrap_err();
        assert_eq!(error.body().error.param.as_deref(), Some("on"));
    }
}
