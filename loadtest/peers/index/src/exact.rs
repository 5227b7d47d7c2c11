//! Right or wrong: every answer compared with the plain reference, also after holes were made.
//!
//! The script is the workload, then two stages more: a sixty-fourth of all entries is removed at
//! random, which leaves holes in chains, and half of those are stored again where the worker still
//! holds the parent, which heals some. All prompts of the last stage are asked again after each.

use crate::reference::Reference;
use crate::subject::Subject;
use crate::workload::{BlockId, Change, Event, Random, Stage, Workload};

/// One entry in so many is removed.
const HOLE_EVERY: usize = 64;

/// The stages of a workload and the two after it, with the right answer to each prompt.
#[derive(Debug)]
pub struct Script {
    workload: Workload,
    /// Answers in the order of stages and prompts, a score for each worker.
    answers: Vec<u32>,
}

/// Prompts that were answered wrongly: with no holes, with holes, and with some of them healed.
#[derive(Debug, Clone, Copy, Default)]
pub struct Wrong {
    pub whole: usize,
    pub holes: usize,
    pub healed: usize,
    pub asked: usize,
}

impl Script {
    /// Writes the stages and asks the reference.
    pub fn new(workload: &Workload) -> Self {
        let mut script = Self {
            workload: workload.clone(),
            answers: Vec::new(),
        };
        let mut reference = Reference::new(workload.workers);
        for stage in &workload.stages {
            script.play(stage, &mut reference);
        }
        let mut random = Random::new(workload.blocks.len() as u64);
        let holes = script.holes(&reference, &mut random);
        script.add(holes, &mut reference);
        let healed = script.heal(&reference, &mut random);
        script.add(healed, &mut reference);
        script
    }

    /// Plays the script to a subject and counts its wrong answers.
    pub fn check<S: Subject>(&self) -> Wrong {
        let subject = S::new(self.workload.workers, 1);
        let mut lane = subject.lane();
        let mut prompt = S::Prompt::default();
        let mut scores = vec![0; self.workload.workers as usize];
        let mut answers = self.answers.chunks_exact(scores.len());
        let mut wrong = Wrong::default();
        let stages = self.workload.stages.len();
        for (index, stage) in self.workload.stages.iter().enumerate() {
            for event in &stage.events {
                subject.apply(&mut lane, &mut S::payload(&self.workload, event));
            }
            subject.drain();
            for asked in &stage.prompts {
                S::ask(&self.workload, self.workload.ids(asked), &mut prompt);
                scores.fill(0);
                subject.find(&mut prompt, &mut scores);
                let is_wrong = answers.next() != Some(scores.as_slice());
                let count = match stages - index {
                    1 => &mut wrong.healed,
                    2 => &mut wrong.holes,
                    _ => &mut wrong.whole,
                };
                *count += usize::from(is_wrong);
                wrong.asked += 1;
            }
        }
        wrong
    }

    fn play(&mut self, stage: &Stage, reference: &mut Reference) {
        for event in &stage.events {
            reference.apply(&self.workload, event);
        }
        let mut scores = vec![0; self.workload.workers as usize];
        for prompt in &stage.prompts {
            reference.find(&self.workload, prompt, &mut scores);
            self.answers.extend_from_slice(&scores);
        }
    }

    fn add(&mut self, events: Vec<Event>, reference: &mut Reference) {
        let prompts = self
            .workload
            .stages
            .last()
            .map(|stage| stage.prompts.clone());
        let stage = Stage {
            events,
            prompts: prompts.unwrap_or_default(),
        };
        self.play(&stage, reference);
        self.workload.stages.push(stage);
    }

    fn holes(&mut self, reference: &Reference, random: &mut Random) -> Vec<Event> {
        let mut events = Vec::new();
        for (worker, held) in reference.held().iter().enumerate() {
            let mut held: Vec<BlockId> = held.iter().copied().collect();
            held.sort_unstable();
            for id in held {
                if random.below(HOLE_EVERY) == 0 {
                    let blocks = self.workload.push_ids(&[id]);
                    events.push(Event {
                        worker: worker as u32,
                        change: Change::Remove { blocks },
                    });
                }
            }
        }
        random.shuffle(&mut events);
        events
    }

    /// Stores half of the blocks that the last stage removed, where the parent is held.
    fn heal(&self, reference: &Reference, random: &mut Random) -> Vec<Event> {
        let parents = parents(&self.workload);
        let removed = self.workload.stages.last().map(|stage| &stage.events);
        let mut events = Vec::new();
        for event in removed.into_iter().flatten() {
            let Change::Remove { blocks } = &event.change else {
                continue;
            };
            let parent = parents[self.workload.ids(blocks)[0] as usize];
            let parent_held = parent.is_none_or(|id| reference.holds(event.worker, id));
            if parent_held && random.below(2) == 0 {
                events.push(Event {
                    worker: event.worker,
                    change: Change::Store {
                        parent,
                        blocks: blocks.clone(),
                    },
                });
            }
        }
        events
    }
}

/// Each block's parent, as the events that store it tell.
fn parents(workload: &Workload) -> Vec<Option<BlockId>> {
    let mut parents = vec![None; workload.blocks.len()];
    for event in workload.stages.iter().flat_map(|stage| &stage.events) {
        if let Change::Store { parent, blocks } = &event.change {
            let mut before = *parent;
            for id in workload.ids(blocks) {
                parents[*id as usize] = before;
                before = Some(*id);
            }
        }
    }
    parents
}
