//! The parameters of each kind of traffic, and the sessions that they make.
//!
//! All defaults are ours. They are of the size that public collections of chats have (two or three turns, tens to hundreds of
//! tokens asked, hundreds answered) and public traces (about a thousand tokens without a conversation, several
//! thousand with tools), and no more exact than that: what a figure for a fleet needs is its own parameters, or its own
//! trace. For comparison, of the two traces that the tests read, Mooncake's conversations have 12,035 tokens asked
//! and 343 answered on average, Azure's completions of code 2,048 and 28. Lengths are log-normal, turns geometric, pauses
//! exponential: the simplest of the right kind that have one parameter for the spread, or none. How many prompts and
//! documents there are and how popular each is are those of a product with a few applications.

use serde::Deserialize;

use super::draw::{Class, Draw, Lengths, Popularity};
use super::{Session, Turn};
use crate::workload::Segment;

/// Of [`Kind::SharedPrompts`](super::Kind::SharedPrompts).
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SharedPrompts {
    pub prompts: Popularity,
    pub system: Lengths,
    pub question: Lengths,
    pub answer: Lengths,
}

impl Default for SharedPrompts {
    fn default() -> Self {
        Self {
            prompts: Popularity {
                count: 32,
                exponent: 1.0,
            },
            system: Lengths::new(1500.0, 0.5, 8_000),
            question: Lengths::new(70.0, 1.0, 2_000),
            answer: Lengths::new(215.0, 0.8, 2_000),
        }
    }
}

impl SharedPrompts {
    pub(super) fn session(&self, draw: &mut Draw) -> Session {
        let number = draw.choose(&self.prompts);
        let system = draw.shared(Class::System, number, &self.system);
        let question = draw.own(&self.question);
        single(0, vec![system, question], draw.length(&self.answer))
    }
}

/// Of [`Kind::MultiTurn`](super::Kind::MultiTurn).
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct MultiTurn {
    pub prompts: Popularity,
    pub system: Lengths,
    /// Mean turns of a chat.
    pub turns: f64,
    pub message: Lengths,
    pub answer: Lengths,
    /// Mean seconds between an answer and the next message: reading and typing.
    pub think_seconds: f64,
    /// A chat ends before its prompt and answer are longer than this.
    pub context_most: u32,
}

impl Default for MultiTurn {
    fn default() -> Self {
        Self {
            prompts: Popularity {
                count: 8,
                exponent: 1.0,
            },
            system: Lengths::new(300.0, 0.5, 2_000),
            turns: 2.5,
            message: Lengths::new(296.0, 1.0, 4_000),
            answer: Lengths::new(441.0, 0.8, 4_000),
            think_seconds: 20.0,
            context_most: 32_000,
        }
    }
}

impl MultiTurn {
    pub(super) fn session(&self, draw: &mut Draw) -> Session {
        let number = draw.choose(&self.prompts);
        let system = draw.shared(Class::System, number, &self.system);
        let talk = Talk {
            turns: self.turns,
            first: self.message,
            next: self.message,
            answer: self.answer,
            pause_seconds: self.think_seconds,
            context_most: self.context_most,
        };
        talk.session(system, draw)
    }
}

/// Of [`Kind::Agents`](super::Kind::Agents).
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Agents {
    /// Which agent it is.
    pub agents: Popularity,
    /// Its instructions and the descriptions of its tools.
    pub system: Lengths,
    /// Mean turns of a task.
    pub turns: f64,
    pub task: Lengths,
    pub tool_result: Lengths,
    pub answer: Lengths,
    /// Mean seconds that a tool takes.
    pub tool_seconds: f64,
    /// A task ends before its prompt and answer are longer than this.
    pub context_most: u32,
}

impl Default for Agents {
    fn default() -> Self {
        Self {
            agents: Popularity {
                count: 4,
                exponent: 0.5,
            },
            system: Lengths::new(4_000.0, 0.3, 16_000),
            turns: 10.0,
            task: Lengths::new(500.0, 1.0, 8_000),
            tool_result: Lengths::new(500.0, 1.2, 16_000),
            answer: Lengths::new(182.0, 0.8, 4_000),
            tool_seconds: 2.0,
            context_most: 64_000,
        }
    }
}

impl Agents {
    pub(super) fn session(&self, draw: &mut Draw) -> Session {
        let number = draw.choose(&self.agents);
        let system = draw.shared(Class::System, number, &self.system);
        let talk = Talk {
            turns: self.turns,
            first: self.task,
            next: self.tool_result,
            answer: self.answer,
            pause_seconds: self.tool_seconds,
            context_most: self.context_most,
        };
        talk.session(system, draw)
    }
}

/// Of [`Kind::Rag`](super::Kind::Rag). Passages stand in the order in which they are found, so two prompts share more than the instructions
/// only if their first passages agree.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Rag {
    pub system: Lengths,
    pub passages: Popularity,
    pub passage: Lengths,
    pub passages_in_prompt: u32,
    pub question: Lengths,
    pub answer: Lengths,
}

impl Default for Rag {
    fn default() -> Self {
        Self {
            system: Lengths::new(400.0, 0.3, 2_000),
            passages: Popularity {
                count: 1_000,
                exponent: 1.0,
            },
            passage: Lengths::new(500.0, 0.4, 2_000),
            passages_in_prompt: 4,
            question: Lengths::new(70.0, 1.0, 1_000),
            answer: Lengths::new(215.0, 0.8, 2_000),
        }
    }
}

impl Rag {
    pub(super) fn session(&self, draw: &mut Draw) -> Session {
        let mut prompt = vec![draw.shared(Class::System, 0, &self.system)];
        for _ in 0..self.passages_in_prompt.min(100) {
            let number = draw.choose(&self.passages);
            let passage = draw.shared(Class::Document, number, &self.passage);
            // A search finds no passage twice.
            if !prompt.contains(&passage) {
                prompt.push(passage);
            }
        }
        prompt.push(draw.own(&self.question));
        single(0, prompt, draw.length(&self.answer))
    }
}

/// Of [`Kind::LongDocuments`](super::Kind::LongDocuments). Questions about one document do not wait for each other's answers.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LongDocuments {
    pub document: Lengths,
    /// Mean questions about one document.
    pub questions: f64,
    pub question: Lengths,
    pub answer: Lengths,
    /// Mean seconds between two questions.
    pub gap_seconds: f64,
}

impl Default for LongDocuments {
    fn default() -> Self {
        Self {
            document: Lengths {
                mean: 25_000.0,
                sigma: 0.5,
                least: 10_000,
                most: 50_000,
            },
            questions: 3.0,
            question: Lengths::new(70.0, 1.0, 1_000),
            answer: Lengths::new(215.0, 0.8, 2_000),
            gap_seconds: 20.0,
        }
    }
}

impl LongDocuments {
    pub(super) fn session(&self, draw: &mut Draw) -> Session {
        let document = draw.own(&self.document);
        let questions = draw.turns(self.questions);
        let ask = |_| Turn {
            pause: draw.pause(self.gap_seconds),
            continues: false,
            prompt: vec![document, draw.own(&self.question)],
            answer_tokens: draw.length(&self.answer),
        };
        Session {
            tenant: 0,
            turns: (0..questions).map(ask).collect(),
        }
    }
}

/// Of [`Kind::SkewedTenants`](super::Kind::SkewedTenants). Tenant 0 is the largest.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SkewedTenants {
    /// With 16 tenants and an exponent of 1.2 the largest sends 38% of all requests.
    pub tenants: Popularity,
    /// Of each tenant.
    pub prompts: Popularity,
    pub system: Lengths,
    pub question: Lengths,
    pub answer: Lengths,
}

impl Default for SkewedTenants {
    fn default() -> Self {
        Self {
            tenants: Popularity {
                count: 16,
                exponent: 1.2,
            },
            prompts: Popularity {
                count: 4,
                exponent: 1.0,
            },
            system: Lengths::new(1500.0, 0.5, 8_000),
            question: Lengths::new(70.0, 1.0, 2_000),
            answer: Lengths::new(215.0, 0.8, 2_000),
        }
    }
}

impl SkewedTenants {
    pub(super) fn session(&self, draw: &mut Draw) -> Session {
        let tenant = draw.choose(&self.tenants);
        let number = tenant * u64::from(self.prompts.count.max(1)) + draw.choose(&self.prompts);
        let system = draw.shared(Class::System, number, &self.system);
        let question = draw.own(&self.question);
        single(
            tenant as u32,
            vec![system, question],
            draw.length(&self.answer),
        )
    }
}

/// Of [`Kind::Unique`](super::Kind::Unique).
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Unique {
    pub prompt: Lengths,
    pub answer: Lengths,
}

impl Default for Unique {
    fn default() -> Self {
        Self {
            prompt: Lengths::new(1_155.0, 1.0, 16_000),
            answer: Lengths::new(211.0, 0.8, 2_000),
        }
    }
}

impl Unique {
    pub(super) fn session(&self, draw: &mut Draw) -> Session {
        let prompt = vec![draw.own(&self.prompt)];
        single(0, prompt, draw.length(&self.answer))
    }
}

fn single(tenant: u32, prompt: Vec<Segment>, answer_tokens: u32) -> Session {
    let turn = Turn {
        pause: std::time::Duration::ZERO,
        continues: false,
        prompt,
        answer_tokens,
    };
    Session {
        tenant,
        turns: vec![turn],
    }
}

/// What chats and agents have in common.
struct Talk {
    turns: f64,
    first: Lengths,
    next: Lengths,
    answer: Lengths,
    pause_seconds: f64,
    context_most: u32,
}

impl Talk {
    fn session(&self, system: Segment, draw: &mut Draw) -> Session {
        let mut session = Session::default();
        let mut context = u64::from(system.tokens);
        for turn in 0..draw.turns(self.turns) {
            let is_first = turn == 0;
            let message = draw.own(if is_first { &self.first } else { &self.next });
            let answer_tokens = draw.length(&self.answer);
            let pause = draw.pause(self.pause_seconds);
            context += u64::from(message.tokens) + u64::from(answer_tokens);
            if !is_first && context > u64::from(self.context_most) {
                break;
            }
            session.turns.push(Turn {
                pause,
                continues: !is_first,
                prompt: if is_first {
                    vec![system, message]
                } else {
                    vec![message]
                },
                answer_tokens,
            });
        }
        session
    }
}
