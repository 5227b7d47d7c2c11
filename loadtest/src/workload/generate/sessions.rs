//! Sessions as one stream of requests in the order of their times.
//!
//! Sessions start as a Poisson process. All turns of a session that has started wait in a heap for their times, and
//! whichever is next, a start or a turn, goes first. Times of follow-ups are the earliest possible: the pauses alone,
//! as if answers took no time.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};
use std::time::Duration;

use super::draw::{Class, Draw, id};
use super::{GenerateError, GenerateOptions, REQUESTS_MAX, Session, Shape};
use crate::workload::arrivals::PoissonGaps;
use crate::workload::tokens::mix;
use crate::workload::{After, PlannedRequest, Segment};

/// Sessions that are made to learn how many turns they have and how long they last.
const SAMPLE_SESSIONS: u64 = 512;

/// The requests of a workload.
pub(super) fn requests(
    shape: &Shape,
    options: GenerateOptions,
) -> Result<Vec<PlannedRequest>, GenerateError> {
    let sample = Sample::of(shape, options.seed);
    let wanted = options.requests.unwrap_or(usize::MAX);
    // What starts in this time may still be asking when the workload begins.
    let warm_up = sample.longest;
    let end = options
        .duration
        .map_or(Duration::MAX, |duration| warm_up.saturating_add(duration));
    let mut stream = Stream::new(shape, options.seed, options.rate / sample.mean_turns);
    let mut taken = Taken::default();
    while taken.requests.len() < wanted {
        let waiting = stream.next();
        if waiting.at >= end {
            break;
        }
        let Some(at) = waiting.at.checked_sub(warm_up) else {
            continue;
        };
        if taken.requests.len() == REQUESTS_MAX {
            return Err(GenerateError::TooMany);
        }
        taken.take(waiting, at);
    }
    Ok(taken.requests)
}

/// What the first sessions say about all.
struct Sample {
    mean_turns: f64,
    longest: Duration,
}

impl Sample {
    fn of(shape: &Shape, seed: u64) -> Self {
        let mut turns = 0;
        let mut longest = Duration::ZERO;
        for number in 0..SAMPLE_SESSIONS {
            let session = shape.session(&mut Draw::new(seed, number));
            let pauses = session.turns.iter().skip(1).map(|turn| turn.pause);
            let whole = pauses.fold(Duration::ZERO, Duration::saturating_add);
            longest = longest.max(whole);
            turns += session.turns.len();
        }
        let mean_turns = turns as f64 / SAMPLE_SESSIONS as f64;
        Self {
            mean_turns: mean_turns.max(1.0),
            longest,
        }
    }
}

/// A turn that waits for its time. Of equal times the earlier session and the earlier turn go first.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Waiting {
    at: Duration,
    session: u64,
    turn: usize,
    tenant: u32,
    /// The pause before it, when it waits for an answer.
    pause: Option<Duration>,
    prompt: Vec<(u64, u32)>,
    answer: (u64, u32),
}

struct Stream<'a> {
    shape: &'a Shape,
    seed: u64,
    gaps: PoissonGaps,
    next_start: Duration,
    next_session: u64,
    /// Bounded by the sessions that run at once, each of which has a bounded number of turns.
    waiting: BinaryHeap<Reverse<Waiting>>,
}

impl<'a> Stream<'a> {
    fn new(shape: &'a Shape, seed: u64, start_rate: f64) -> Self {
        let mut gaps = PoissonGaps::new(start_rate, seed);
        Self {
            shape,
            seed,
            next_start: gaps.next().unwrap_or_default(),
            gaps,
            next_session: 0,
            waiting: BinaryHeap::new(),
        }
    }

    fn next(&mut self) -> Waiting {
        loop {
            if self
                .waiting
                .peek()
                .is_some_and(|Reverse(first)| first.at <= self.next_start)
                && let Some(Reverse(first)) = self.waiting.pop()
            {
                return first;
            }
            self.start_session();
        }
    }

    fn start_session(&mut self) {
        let number = self.next_session;
        let session = self.shape.session(&mut Draw::new(self.seed, number));
        self.queue_turns(number, session);
        self.next_session += 1;
        let gap = self.gaps.next().unwrap_or_default();
        self.next_start = self.next_start.saturating_add(gap);
    }

    fn queue_turns(&mut self, number: u64, session: Session) {
        let mut at = self.next_start;
        let mut said: Vec<(u64, u32)> = Vec::new();
        for (turn, asked) in session.turns.into_iter().enumerate() {
            if turn > 0 {
                at = at.saturating_add(asked.pause);
            }
            if !asked.continues {
                said.clear();
            }
            said.extend(
                asked
                    .prompt
                    .iter()
                    .map(|segment| (segment.id, segment.tokens)),
            );
            let name = mix(number) ^ turn as u64;
            let answer = (
                id(self.seed, Class::Answer, name),
                asked.answer_tokens.max(1),
            );
            self.waiting.push(Reverse(Waiting {
                at,
                session: number,
                turn,
                tenant: session.tenant,
                pause: asked.continues.then_some(asked.pause),
                prompt: said.clone(),
                answer,
            }));
            said.push(answer);
        }
    }
}

/// The workload so far.
#[derive(Default)]
struct Taken {
    requests: Vec<PlannedRequest>,
    /// The last request of each session.
    last: HashMap<u64, usize>,
}

impl Taken {
    /// A follow-up of what came before the beginning waits for nothing: that answer is part of the plan.
    fn take(&mut self, waiting: Waiting, at: Duration) {
        let last = self.last.insert(waiting.session, self.requests.len());
        let after = waiting.pause.zip(last);
        let segment = |(id, tokens): (u64, u32)| Segment { id, tokens };
        self.requests.push(PlannedRequest {
            at,
            prompt: waiting.prompt.into_iter().map(segment).collect(),
            answer: segment(waiting.answer),
            session: waiting.session,
            tenant: waiting.tenant,
            after: after.map(|(pause, request)| After { request, pause }),
        });
    }
}
