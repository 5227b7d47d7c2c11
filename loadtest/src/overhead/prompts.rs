//! The request bodies: conversations of a given length that a picker has seen before, each with a new question.
//!
//! That is what most requests are. A picker that remembers prefixes pays for the new part only, one that does not pays
//! for all; and no body is sent twice, so that nobody gains by remembering whole requests.

use bytes::Bytes;

use crate::stack::MODEL_NAME;

/// How many conversations take turns.
pub(super) const CONVERSATIONS: usize = 16;

const WORDS: [&str; 16] = [
    "water", "stone", "river", "light", "engine", "signal", "station", "garden", "winter",
    "letter", "bridge", "market", "number", "window", "summer", "morning",
];

/// An endless row of bodies of about the same length.
#[derive(Debug)]
pub(super) struct Prompts {
    /// Each body up to the question.
    conversations: Vec<String>,
    row: usize,
    sent: usize,
}

impl Prompts {
    /// Bodies of at least `bytes` bytes and little more. Rows of different numbers have no body in common.
    pub(super) fn new(bytes: usize, row: usize) -> Prompts {
        let conversations = (0..CONVERSATIONS).map(|number| conversation(number, bytes));
        Prompts {
            conversations: conversations.collect(),
            row,
            sent: 0,
        }
    }

    pub(super) fn next_body(&mut self) -> Bytes {
        let (row, number) = (self.row, self.sent);
        self.sent += 1;
        let begin = &self.conversations[number % CONVERSATIONS];
        Bytes::from(format!(
            "{begin}Question {number} of {row}: and then?\"}}]}}"
        ))
    }
}

/// A body that ends where the question's text begins.
fn conversation(number: usize, bytes: usize) -> String {
    let mut body = format!(
        r#"{{"model":"{MODEL_NAME}","stream":true,"stream_options":{{"include_usage":true}},"max_tokens":100,"messages":[{{"role":"system","content":"Handbook {number}."#
    );
    // xorshift: the texts of two conversations have nothing in common.
    let mut state = 0x9e37_79b9_u32.wrapping_add((number as u32).wrapping_mul(0x85eb_ca6b)) | 1;
    while body.len() < bytes {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        body.push(' ');
        body.push_str(WORDS[state as usize % WORDS.len()]);
    }
    body.push_str(r#""},{"role":"user","content":""#);
    body
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bodies_are_chats_of_the_length_and_no_two_are_alike() {
        let mut prompts = Prompts::new(2048, 1);
        let bodies: Vec<Bytes> = (0..3 * CONVERSATIONS)
            .map(|_| prompts.next_body())
            .collect();
        for (index, body) in bodies.iter().enumerate() {
            assert!((2048..2300).contains(&body.len()), "{}", body.len());
            let chat: serde_json::Value = serde_json::from_slice(body).unwrap();
            assert_eq!(chat["messages"].as_array().unwrap().len(), 2);
            assert!(!bodies[..index].contains(body), "body {index}");
        }
        assert_ne!(Prompts::new(2048, 2).next_body(), bodies[0]);
        // The same conversation comes again with the same begin.
        assert_eq!(bodies[0][..2000], bodies[CONVERSATIONS][..2000]);
        assert_ne!(bodies[0][..2000], bodies[1][..2000]);
    }
}
