//! `session-affinity-filter`: sends a session to the endpoint that served it before, and to no
//! other as long as that one is a candidate. A session that is new, or whose endpoint is gone, has
//! the choice of all.

use super::super::plugin::{Context, Filter, Maker};
use super::super::session::{Parameters, SessionAffinity};
use crate::config::plugins::{self, PluginKind, PluginType, Stage};

/// The plugin's type name.
pub const TYPE_NAME: &str = "session-affinity-filter";

/// The plugin type.
pub const MAKER: Maker<dyn Filter> = Maker {
    plugin: PluginType {
        name: TYPE_NAME,
        kind: PluginKind::Filter,
        stage: Stage::Alpha,
        check: plugins::check::<Parameters>,
    },
    make: |given| {
        let parameters: Parameters = plugins::read(given)?;
        Ok(Box::new(SessionAffinityFilter {
            affinity: SessionAffinity::from(&parameters),
        }))
    },
};

/// See the module.
#[derive(Debug)]
pub struct SessionAffinityFilter {
    affinity: SessionAffinity,
}

impl Filter for SessionAffinityFilter {
    fn type_name(&self) -> &'static str {
        TYPE_NAME
    }

    fn filter(&self, context: &Context<'_>, candidates: &mut Vec<usize>) {
        if let Some(place) = self.affinity.find(context, candidates) {
            candidates.swap(0, place);
            candidates.truncate(1);
        }
    }

    fn picked(&self, context: &Context<'_>, endpoints: &[usize]) {
        self.affinity.picked(context, endpoints);
    }

    fn response_headers(
        &self,
        context: &Context<'_>,
        endpoints: &[usize],
        headers: &mut Vec<(String, String)>,
    ) {
        self.affinity.response_headers(context, endpoints, headers);
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::super::super::fixtures::{HeaderList, request, snapshot};
    use super::super::tests::{Case, kept};
    use super::*;
    use crate::fleet::{Live, Matches};

    #[test]
    fn a_token_leaves_its_endpoint_alone() {
        let fleet = snapshot(&[Live::default(); 3]);
        let of = |token: &str| {
            let case = Case {
                headers: HeaderList::one("x-session-token", token),
                ..Case::default()
            };
            kept(&MAKER, &Value::Null, &fleet, &case)
        };
        assert_eq!(of("d29ya2VyLTI="), [2]);
        assert_eq!(of("d29ya2VyLTk="), [0, 1, 2]);
        assert_eq!(of(""), [0, 1, 2]);
    }

    #[test]
    fn a_named_session_is_kept_where_it_was_picked() {
        let filter = (MAKER.make)(&json!({"strategy": "session_id"})).unwrap();
        let fleet = snapshot(&[Live::default(); 3]);
        let matches = Matches::default();
        let headers = HeaderList::one("x-session-id", "a");
        let mut request = request(0, &matches, 0);
        request.headers = &headers;
        let context = Context {
            snapshot: &fleet,
            request: &request,
            now_ms: 5,
        };
        let filtered = |mut candidates: Vec<usize>| {
            filter.filter(&context, &mut candidates);
            candidates
        };
        assert_eq!(filtered(vec![0, 1, 2]), [0, 1, 2]);
        filter.picked(&context, &[1]);
        assert_eq!(filtered(vec![0, 1, 2]), [1]);
        assert_eq!(filtered(vec![0, 2]), [0, 2]);
    }
}
