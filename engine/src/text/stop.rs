//! Stop strings: the answer ends where the first of them is complete.
//!
//! Text arrives in pieces of any size, so a stop string may be spread over several. The last `max(len) - 1`
//! bytes (rounded to a character) may be the start of one and are held back; what lies before can no longer be
//! part of a match and is sent. The stop string that *completes earliest* wins, whichever starts first; of two
//! that complete at the same byte the one earlier in the list wins. Both rules are vLLM's, and neither depends
//! on how the text was cut into pieces.
//!
//! With `include_stop_str_in_output` nothing is held back: the text up to the end of the match is wanted anyway.
//!
//! Cost: one substring search over the piece and the held tail for each stop string, none over older text.

/// What a piece of the answer turned into.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct StopText {
    /// Text to send.
    pub text: String,
    /// Position in the list of the stop string that ended the answer.
    pub matched: Option<usize>,
}

/// The stop strings of one answer and the tail of its text.
#[derive(Debug)]
pub struct StopStrings {
    stops: Vec<String>,
    include_in_output: bool,
    /// Bytes of the longest stop string less one.
    tail_len: usize,
    /// The tail of the answer that can still be the start of a match.
    tail: String,
    /// Bytes of `tail` that are sent.
    sent: usize,
}

impl StopStrings {
    /// Empty stop strings never match. With an empty list every piece passes as it is.
    pub fn new(stops: Vec<String>, include_in_output: bool) -> Self {
        let longest = stops.iter().map(String::len).max().unwrap_or(0);
        Self {
            stops,
            include_in_output,
            tail_len: longest.saturating_sub(1),
            tail: String::new(),
            sent: 0,
        }
    }

    /// Whether there is nothing to look for: then every piece passes as it is.
    pub fn is_empty(&self) -> bool {
        self.tail_len == 0 && self.stops.iter().all(String::is_empty)
    }

    /// The stop string at `index` of the list.
    pub fn get(&self, index: usize) -> Option<&str> {
        self.stops.get(index).map(String::as_str)
    }

    /// Takes the next piece. After a match the answer is over and nothing more may be pushed.
    pub fn push(&mut self, piece: &str) -> StopText {
        let fresh_from = self.tail.len();
        self.tail.push_str(piece);
        match self.earliest_match(fresh_from) {
            Some((index, start, end)) => {
                let cut = if self.include_in_output { end } else { start };
                let text = self.tail.get(self.sent..cut).unwrap_or_default().to_owned();
                StopText {
                    text,
                    matched: Some(index),
                }
            }
            None => StopText {
                text: self.release(),
                matched: None,
            },
        }
    }

    /// Takes a piece in which no stop string may end, because the answer has not reached `min_tokens`. One that
    /// begins in it may still be completed by a later piece.
    pub fn push_unsearched(&mut self, piece: &str) -> String {
        self.tail.push_str(piece);
        self.release()
    }

    /// The answer ended by itself: returns what is held back.
    pub fn finish(&mut self) -> String {
        let text = self.tail.get(self.sent..).unwrap_or_default().to_owned();
        self.sent = self.tail.len();
        text
    }

    /// `(index, start, end)` of the match that ends first; none ends before `fresh_from`, which was searched.
    fn earliest_match(&self, fresh_from: usize) -> Option<(usize, usize, usize)> {
        let mut best: Option<(usize, usize, usize)> = None;
        for (index, stop) in self
            .stops
            .iter()
            .enumerate()
            .filter(|(_, stop)| !stop.is_empty())
        {
            let from = ceil_char_boundary(&self.tail, (fresh_from + 1).saturating_sub(stop.len()));
            let Some(found) = self
                .tail
                .get(from..)
                .and_then(|text| text.find(stop.as_str()))
            else {
                continue;
            };
            let (start, end) = (from + found, from + found + stop.len());
            if best.is_none_or(|(_, _, best_end)| end < best_end) {
                best = Some((index, start, end));
            }
        }
        best
    }

    /// Sends what can no longer be part of a match and forgets all but the tail.
    fn release(&mut self) -> String {
        let keep_from =
            floor_char_boundary(&self.tail, self.tail.len().saturating_sub(self.tail_len));
        let safe = if self.include_in_output {
            self.tail.len()
        } else {
            keep_from
        };
        let text = self
            .tail
            .get(self.sent..safe)
            .unwrap_or_default()
            .to_owned();
        self.tail.drain(..keep_from);
        self.sent = safe.max(self.sent) - keep_from;
        text
    }
}

/// The largest character boundary of `text` at or below `index`.
fn floor_char_boundary(text: &str, index: usize) -> usize {
    (0..=index.min(text.len()))
        .rev()
        .find(|at| text.is_char_boundary(*at))
        .unwrap_or(0)
}

/// The smallest character boundary of `text` at or above `index`.
fn ceil_char_boundary(text: &str, index: usize) -> usize {
    (index..text.len())
        .find(|at| text.is_char_boundary(*at))
        .unwrap_or(text.len())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn stops(list: &[&str], include: bool) -> StopStrings {
        StopStrings::new(list.iter().map(ToString::to_string).collect(), include)
    }

    /// Feeds `pieces` and returns the text sent and the match.
    fn run(stops: &mut StopStrings, pieces: &[&str]) -> (String, Option<usize>) {
        let mut sent = String::new();
        for piece in pieces {
            let out = stops.push(piece);
            sent.push_str(&out.text);
            if out.matched.is_some() {
                return (sent, out.matched);
            }
        }
        sent.push_str(&stops.finish());
        (sent, None)
    }

    /// The plain model: search the whole text.
    fn model(list: &[String], include: bool, text: &str) -> (String, Option<usize>) {
        let mut best: Option<(usize, usize, usize)> = None;
        for (index, stop) in list.iter().enumerate().filter(|(_, stop)| !stop.is_empty()) {
            if let Some(start) = text.find(stop.as_str()) {
                let end = start + stop.len();
                if best.is_none_or(|(_, _, best_end)| end < best_end) {
                    best = Some((index, start, end));
                }
            }
        }
        match best {
            Some((index, start, end)) => (
                text[..if include { end } else { start }].to_owned(),
                Some(index),
            ),
            None => (text.to_owned(), None),
        }
    }

    #[test]
    fn a_match_over_several_pieces_is_never_sent() {
        let mut stops = stops(&["END"], false);
        assert_eq!(
            stops.push("abE"),
            StopText {
                text: "a".into(),
                matched: None
            }
        );
        assert_eq!(
            stops.push("N"),
            StopText {
                text: "b".into(),
                matched: None
            }
        );
        assert_eq!(
            stops.push("Dx"),
            StopText {
                text: String::new(),
                matched: Some(0)
            }
        );
    }

    #[test]
    fn the_stop_that_completes_first_wins() {
        assert_eq!(
            run(&mut stops(&["bcde", "cd"], false), &["abcdef"]),
            ("ab".into(), Some(1))
        );
        assert_eq!(
            run(&mut stops(&["cd", "bcd"], false), &["abcdef"]),
            ("ab".into(), Some(0))
        );
        assert_eq!(
            run(&mut stops(&["bcd", "cd"], false), &["abcdef"]),
            ("a".into(), Some(0))
        );
    }

    #[test]
    fn included_stops_hold_nothing_back() {
        let mut stops = stops(&["END"], true);
        assert_eq!(stops.push("abE").text, "abE");
        assert_eq!(
            stops.push("NDx"),
            StopText {
                text: "ND".into(),
                matched: Some(0)
            }
        );
    }

    #[test]
    fn text_under_min_tokens_is_not_searched_but_may_begin_a_match() {
        let mut stops = stops(&["aa"], false);
        assert_eq!(stops.push_unsearched("xaa"), "xa");
        assert_eq!(
            stops.push("ab"),
            StopText {
                text: String::new(),
                matched: Some(0)
            }
        );
    }

    #[test]
    fn of_two_that_complete_together_the_first_of_the_list_wins() {
        for (list, index) in [(["é🚂", "🚂"], 0), (["🚂", "é🚂"], 0)] {
            let (text, matched) = run(&mut stops(&list, true), &["aé", "🚂b"]);
            assert_eq!((text.as_str(), matched), ("aé🚂", Some(index)));
        }
    }

    /// The pieces of `text` between random cuts.
    fn pieces(text: &str, cuts: &[prop::sample::Index]) -> Vec<String> {
        let chars: Vec<char> = text.chars().collect();
        let mut bounds: Vec<usize> = cuts.iter().map(|cut| cut.index(chars.len() + 1)).collect();
        bounds.extend([0, chars.len()]);
        bounds.sort_unstable();
        let pieces = bounds.windows(2);
        pieces
            .map(|pair| chars[pair[0]..pair[1]].iter().collect())
            .collect()
    }

    /// The first match that ends behind `from`, wherever it begins.
    fn model_behind(list: &[String], text: &str, from: usize) -> Option<(usize, usize, usize)> {
        let ends = (from + 1..=text.len()).filter(|end| text.is_char_boundary(*end));
        let matches = ends.flat_map(|end| {
            let ending = list.iter().enumerate();
            let ending =
                ending.filter(move |(_, stop)| !stop.is_empty() && text[..end].ends_with(*stop));
            ending.map(move |(index, stop)| (index, end - stop.len(), end))
        });
        matches.min_by_key(|(index, _, end)| (*end, *index))
    }

    proptest! {
        /// What was sent before a match counts as sent, even if the match began in it: under `min_tokens` text is
        /// held back only as far as a stop string can reach.
        #[test]
        fn text_under_min_tokens_hides_matches_and_not_their_beginnings(
            list in prop::collection::vec("[abé🚂]{0,4}", 0..4),
            text in "[abé🚂c]{0,40}",
            cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..12),
            unsearched in 0_usize..6,
            include in any::<bool>(),
        ) {
            let pieces = pieces(&text, &cuts);
            let (hidden, searched) = pieces.split_at(unsearched.min(pieces.len()));
            let mut stops = StopStrings::new(list.clone(), include);
            let mut sent: String = hidden.iter().map(|piece| stops.push_unsearched(piece)).collect();
            let searched: Vec<&str> = searched.iter().map(String::as_str).collect();
            let (rest, matched) = run(&mut stops, &searched);
            sent.push_str(&rest);
            let expected = model_behind(&list, &text, hidden.concat().len());
            let cut = expected.map_or(text.len(), |(_, start, end)| if include { end } else { start });
            prop_assert_eq!(sent, &text[..cut]);
            prop_assert_eq!(matched, expected.map(|(index, ..)| index));
        }

        #[test]
        fn chunking_changes_nothing(
            list in prop::collection::vec("[abé🚂]{0,4}", 0..4),
            text in "[abé🚂c]{0,40}",
            cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..12),
            include in any::<bool>(),
        ) {
            let pieces = pieces(&text, &cuts);
            let pieces: Vec<&str> = pieces.iter().map(String::as_str).collect();
            let mut stops = StopStrings::new(list.clone(), include);
            prop_assert_eq!(run(&mut stops, &pieces), model(&list, include, &text));
            prop_assert!(stops.tail.len() <= stops.tail_len + text.len());
        }
    }
}
