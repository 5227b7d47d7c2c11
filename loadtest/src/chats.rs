//! The conversations that are sent: teams that share a long handbook, users who ask about it turn by turn.
//!
//! It is the shape that makes placement matter: a system prompt shared by several users, and a history that grows
//! with each turn and comes back with each request. All text is made here from a seed, by the same small generator on
//! every machine, so two runs send the same bytes. The subject is what the demo model knows about: gateways, caches,
//! queues. Answers are not part of it: the caller feeds back what the model really said.

/// How many conversations, and how long.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    pub conversations: usize,
    /// Conversation `i` has system prompt `i % system_prompts`.
    pub system_prompts: usize,
    pub turns: usize,
    /// A system prompt ends with the first article that passes this length.
    pub system_prompt_chars: usize,
}

/// What one user says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Conversation {
    pub system_prompt: String,
    /// One a turn.
    pub questions: Vec<String>,
}

/// The conversations of `seed`: equal for equal arguments, forever.
pub fn conversations(shape: Shape, seed: u64) -> Vec<Conversation> {
    let mut random = Random::new(seed);
    let system_prompts: Vec<String> = (0..shape.system_prompts.max(1))
        .map(|team| handbook(team, shape.system_prompt_chars, &mut random))
        .collect();
    (0..shape.conversations)
        .map(|index| Conversation {
            system_prompt: system_prompts[index % system_prompts.len()].clone(),
            questions: questions(shape.turns, &mut random),
        })
        .collect()
}

/// The order in which `count` users send their next question.
///
/// Users do not take turns. With a fixed order round robin would give each conversation the same worker every time,
/// whenever the number of conversations is a multiple of the number of workers, and look better than it is.
pub fn arrival_order(count: usize, seed: u64, turn: usize) -> Vec<usize> {
    let mut random = Random::new(seed ^ (turn as u64 + 1).wrapping_mul(0x2545_F491_4F6C_DD1D));
    let mut order: Vec<usize> = (0..count).collect();
    for last in (1..count).rev() {
        order.swap(last, random.below(last + 1));
    }
    order
}

const TEAMS: [&str; 9] = [
    "north", "cache", "gateway", "queue", "metrics", "model", "night", "west", "early",
];

const SUBJECTS: [&str; 12] = [
    "The gateway",
    "The picker",
    "A worker",
    "The prefix cache",
    "The queue",
    "The scheduler",
    "A long prompt",
    "The load balancer",
    "A health check",
    "The rate limit",
    "A retry",
    "The stream",
];

const VERBS: [&str; 10] = [
    "keeps",
    "frees",
    "counts",
    "moves",
    "reads",
    "shares",
    "waits for",
    "reports",
    "splits",
    "holds",
];

const OBJECTS: [&str; 12] = [
    "the blocks of earlier prompts",
    "the oldest request",
    "the memory of a worker",
    "the first token",
    "the keys and values",
    "the answer of the model",
    "the length of the queue",
    "the number of open streams",
    "the next batch",
    "the system prompt",
    "the hit rate of the cache",
    "the limit of one user",
];

const OCCASIONS: [&str; 10] = [
    "before each step",
    "when memory runs out",
    "for every new request",
    "while the prompt is read",
    "after a restart",
    "on a busy day",
    "until the answer is complete",
    "when a worker does not answer",
    "as long as the client waits",
    "at the end of a turn",
];

const TOPICS: [&str; 10] = [
    "prefix cache",
    "gateway",
    "queue",
    "scheduler",
    "load balancer",
    "block",
    "worker",
    "batch",
    "timeout",
    "health check",
];

/// A question about a topic opens a conversation and may come back; the others follow up.
const OPENINGS: [&str; 3] = ["What is a", "Tell me about the", "How does it work with a"];
const FOLLOW_UPS: [&str; 5] = [
    "Why does it matter?",
    "How can I improve it?",
    "Can you give me an example?",
    "What should I watch?",
    "When is it a problem?",
];

/// Numbered articles until `chars` are reached. Unlike teams differ from the first line on.
fn handbook(team: usize, chars: usize, random: &mut Random) -> String {
    let name = TEAMS[team % TEAMS.len()];
    let mut text = format!("This is handbook {} of the {name} team.", team + 1);
    for article in 1.. {
        if text.len() >= chars {
            break;
        }
        let sentences: Vec<String> = (0..3).map(|_| sentence(random)).collect();
        text.extend([format!("\n{article}. "), sentences.join(" ")]);
    }
    text
}

fn sentence(random: &mut Random) -> String {
    let (subject, verb) = (random.choose(&SUBJECTS), random.choose(&VERBS));
    let (object, occasion) = (random.choose(&OBJECTS), random.choose(&OCCASIONS));
    format!("{subject} {verb} {object} {occasion}.")
}

fn questions(turns: usize, random: &mut Random) -> Vec<String> {
    (0..turns)
        .map(|turn| {
            if turn % 2 == 0 {
                let (opening, topic) = (random.choose(&OPENINGS), random.choose(&TOPICS));
                let end = if opening.starts_with("Tell") {
                    '.'
                } else {
                    '?'
                };
                format!("{opening} {topic}{end}")
            } else {
                random.choose(&FOLLOW_UPS).to_owned()
            }
        })
        .collect()
}

/// SplitMix64 (Steele, Lea, Flood 2014). A library's generator may change its stream with a version; this one cannot.
#[derive(Debug)]
struct Random(u64);

impl Random {
    fn new(seed: u64) -> Self {
        Self(seed)
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ (mixed >> 31)
    }

    /// Evenly below `bound`, which is above zero; the bias of the modulo is far below one in a million here.
    fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound as u64) as usize
    }

    fn choose<'a>(&mut self, words: &[&'a str]) -> &'a str {
        words[self.below(words.len())]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHAPE: Shape = Shape {
        conversations: 6,
        system_prompts: 3,
        turns: 4,
        system_prompt_chars: 1500,
    };

    #[test]
    fn the_generator_is_the_published_one() {
        let mut random = Random::new(1_234_567);
        assert_eq!(random.next(), 6_457_827_717_110_365_317);
        assert_eq!(random.next(), 3_203_168_211_198_807_973);
    }

    #[test]
    fn the_same_seed_gives_the_same_text() {
        assert_eq!(conversations(SHAPE, 7), conversations(SHAPE, 7));
        assert_ne!(conversations(SHAPE, 7), conversations(SHAPE, 8));
    }

    #[test]
    fn conversations_have_the_shape_that_was_asked_for() {
        let conversations = conversations(SHAPE, 7);
        assert_eq!(conversations.len(), 6);
        for (index, conversation) in conversations.iter().enumerate() {
            assert_eq!(conversation.questions.len(), 4);
            let length = conversation.system_prompt.len();
            assert!((1500..1900).contains(&length), "{length}");
            assert_eq!(
                conversation.system_prompt,
                conversations[index % 3].system_prompt
            );
        }
        assert_ne!(
            conversations[0].system_prompt,
            conversations[1].system_prompt
        );
        assert_ne!(conversations[0].questions, conversations[3].questions);
    }

    #[test]
    fn each_turn_has_its_own_order_of_all_users() {
        let orders: Vec<Vec<usize>> = (0..4).map(|turn| arrival_order(6, 7, turn)).collect();
        for order in &orders {
            let mut sorted = order.clone();
            sorted.sort_unstable();
            assert_eq!(sorted, [0, 1, 2, 3, 4, 5]);
        }
        assert!(
            orders.windows(2).all(|pair| pair[0] != pair[1]),
            "{orders:?}"
        );
        assert_eq!(orders[2], arrival_order(6, 7, 2));
    }
}
