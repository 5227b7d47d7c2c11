//! `session-affinity-scorer`: 1 for the endpoint that served the session before, 0 for the others,
//! and for all when the session is new or its endpoint is not a candidate.

use super::super::plugin::{Context, Maker, Scorer};
use super::super::session::{Parameters, SessionAffinity};
use crate::config::plugins::{self, PluginKind, PluginType, Stage};

/// The plugin's type name.
pub const TYPE_NAME: &str = "session-affinity-scorer";

/// The plugin type.
pub const MAKER: Maker<dyn Scorer> = Maker {
    plugin: PluginType {
        name: TYPE_NAME,
        kind: PluginKind::Scorer,
        stage: Stage::Alpha,
        check: plugins::check::<Parameters>,
    },
    make: |given| {
        let parameters: Parameters = plugins::read(given)?;
        Ok(Box::new(SessionAffinityScorer {
            affinity: SessionAffinity::from(&parameters),
        }))
    },
};

/// See the module.
#[derive(Debug)]
pub struct SessionAffinityScorer {
    affinity: SessionAffinity,
}

impl Scorer for SessionAffinityScorer {
    fn type_name(&self) -> &'static str {
        TYPE_NAME
    }

    fn score(&self, context: &Context<'_>, candidates: &[usize], scores: &mut [f32]) {
        scores.fill(0.0);
        let place = self.affinity.find(context, candidates);
        if let Some(score) = place.and_then(|place| scores.get_mut(place)) {
            *score = 1.0;
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
    use super::*;
    use crate::fleet::{Live, Matches};

    #[test]
    fn the_endpoint_of_the_session_scores_one() {
        let fleet = snapshot(&[Live::default(); 3]);
        let matches = Matches::default();
        let headers = HeaderList(vec![
            ("x-session-token", "d29ya2VyLTE=".to_owned()),
            ("x-session-id", "a".to_owned()),
        ]);
        let mut request = request(0, &matches, 0);
        request.headers = &headers;
        let context = Context {
            snapshot: &fleet,
            request: &request,
            now_ms: 5,
        };
        let of = |scorer: &dyn Scorer| {
            let mut scores = [9.0; 3];
            scorer.score(&context, &[2, 1, 0], &mut scores);
            scores.map(|score| score as u32)
        };
        let by_token = (MAKER.make)(&Value::Null).unwrap();
        assert_eq!(of(&*by_token), [0, 1, 0]);
        let mut sent = Vec::new();
        by_token.response_headers(&context, &[1], &mut sent);
        assert_eq!(sent[0].1, "d29ya2VyLTE=");

        let by_id = (MAKER.make)(&json!({"strategy": "session_id"})).unwrap();
        assert_eq!(of(&*by_id), [0, 0, 0]);
        by_id.picked(&context, &[2, 0]);
        assert_eq!(of(&*by_id), [1, 0, 0]);
    }
}
