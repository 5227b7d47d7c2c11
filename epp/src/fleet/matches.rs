//! What an index says about one prompt: how many of its leading tokens each endpoint holds in its
//! cache.
//!
//! It lives beside the endpoints, because the rooms that write it (an index) and read it (the
//! schedulers) must not know one another. It is a dense array by endpoint number with a list of the
//! touched entries, so that clearing it costs what was written and a reused buffer allocates
//! nothing.

use super::endpoint::{EndpointId, Generation};

/// Cached prompt tokens by endpoint. An endpoint that was never recorded has none.
#[derive(Clone, Default, Debug)]
pub struct Matches {
    by_endpoint: Vec<Match>,
    touched: Vec<EndpointId>,
}

#[derive(Clone, Copy, Default, Debug)]
struct Match {
    /// 0 marks an entry nobody recorded; generations count from 1.
    generation: u32,
    tokens: u32,
    gpu_tokens: u32,
    confirmed_tokens: u32,
}

impl Matches {
    /// Leading prompt tokens that this endpoint holds in any tier of its cache; 0 for another
    /// generation of it.
    pub fn tokens(&self, id: EndpointId, generation: Generation) -> u32 {
        self.entry(id, generation).map_or(0, |found| found.tokens)
    }

    /// Leading prompt tokens that this endpoint holds in GPU memory without a break; never more
    /// than [`tokens`](Self::tokens).
    pub fn gpu_tokens(&self, id: EndpointId, generation: Generation) -> u32 {
        self.entry(id, generation)
            .map_or(0, |found| found.gpu_tokens)
    }

    /// Leading prompt tokens of which it is known that this endpoint has computed them; never more than
    /// [`tokens`](Self::tokens). The rest is on its way there, with a request that has no first token yet.
    pub fn confirmed_tokens(&self, id: EndpointId, generation: Generation) -> u32 {
        self.entry(id, generation)
            .map_or(0, |found| found.confirmed_tokens)
    }

    /// The longest match of any endpoint, in tokens.
    pub fn longest(&self) -> u32 {
        self.touched
            .iter()
            .filter_map(|id| self.by_endpoint.get(id.index()))
            .map(|found| found.tokens)
            .max()
            .unwrap_or(0)
    }

    /// Notes a match. Of several notes for one endpoint the longest counts; a later generation
    /// replaces an earlier one.
    pub fn record(&mut self, id: EndpointId, generation: Generation, tokens: u32, gpu_tokens: u32) {
        if let Some(entry) = self.entry_mut(id, generation) {
            entry.tokens = entry.tokens.max(tokens);
            entry.gpu_tokens = entry.gpu_tokens.max(gpu_tokens);
            entry.confirmed_tokens = entry.confirmed_tokens.max(tokens);
        }
    }

    /// Notes a match as [`record`](Self::record) does, of tokens that are yet to be computed.
    pub fn promise(&mut self, id: EndpointId, generation: Generation, tokens: u32) {
        if let Some(entry) = self.entry_mut(id, generation) {
            entry.tokens = entry.tokens.max(tokens);
            entry.gpu_tokens = entry.gpu_tokens.max(tokens);
        }
    }

    /// The entry of this generation; none where a later one was noted.
    fn entry_mut(&mut self, id: EndpointId, generation: Generation) -> Option<&mut Match> {
        if self.by_endpoint.len() <= id.index() {
            self.by_endpoint.resize(id.index() + 1, Match::default());
        }
        let entry = self.by_endpoint.get_mut(id.index())?;
        if entry.generation == 0 {
            self.touched.push(id);
        }
        if entry.generation < generation.0 {
            *entry = Match {
                generation: generation.0,
                ..Match::default()
            };
        }
        (entry.generation == generation.0).then_some(entry)
    }

    /// Forgets everything and keeps the buffers.
    pub fn clear(&mut self) {
        for id in self.touched.drain(..) {
            if let Some(entry) = self.by_endpoint.get_mut(id.index()) {
                *entry = Match::default();
            }
        }
    }

    fn entry(&self, id: EndpointId, generation: Generation) -> Option<&Match> {
        self.by_endpoint
            .get(id.index())
            .filter(|found| found.generation == generation.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn longest_note_of_the_newest_generation_counts() {
        let mut matches = Matches::default();
        matches.record(EndpointId(3), Generation(1), 32, 16);
        matches.record(EndpointId(3), Generation(1), 16, 16);
        assert_eq!(matches.tokens(EndpointId(3), Generation(1)), 32);
        assert_eq!(matches.gpu_tokens(EndpointId(3), Generation(1)), 16);

        matches.record(EndpointId(3), Generation(2), 8, 8);
        matches.record(EndpointId(3), Generation(1), 64, 64);
        assert_eq!(matches.tokens(EndpointId(3), Generation(1)), 0);
        assert_eq!(matches.tokens(EndpointId(3), Generation(2)), 8);
        assert_eq!(matches.longest(), 8);
    }

    #[test]
    fn what_is_promised_is_not_confirmed() {
        let mut matches = Matches::default();
        let (id, generation) = (EndpointId(2), Generation(1));
        matches.promise(id, generation, 64);
        assert_eq!(matches.tokens(id, generation), 64);
        assert_eq!(matches.gpu_tokens(id, generation), 64);
        assert_eq!(matches.confirmed_tokens(id, generation), 0);
        matches.record(id, generation, 32, 0);
        assert_eq!(matches.tokens(id, generation), 64);
        assert_eq!(matches.confirmed_tokens(id, generation), 32);
        assert_eq!(matches.confirmed_tokens(id, Generation(2)), 0);
    }

    #[test]
    fn clear_forgets_all() {
        let mut matches = Matches::default();
        matches.record(EndpointId(0), Generation(1), 32, 32);
        matches.record(EndpointId(9), Generation(4), 48, 0);
        matches.clear();
        assert_eq!(matches.longest(), 0);
        assert_eq!(matches.tokens(EndpointId(9), Generation(4)), 0);
    }
}
