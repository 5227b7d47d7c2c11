//! A CPU backend, and steps formed by hand.

use pointsman_engine::backend::{
    Backend, BackendChoice, KvLayout, SampleSpec, Step, StepOutput, StepSequence, select,
};
use pointsman_engine::model::Model;

/// Tokens per block.
const BLOCK_SIZE: u32 = 16;

/// Room for all prompts at once.
const BLOCKS: u32 = 256;

/// New tokens of one sequence in one step: prompts are cut where blocks are not.
const CHUNK: usize = 50;

/// See the module's description.
pub(crate) struct Runner {
    backend: Box<dyn Backend>,
    vocab: usize,
}

/// A sequence as a scheduler would run it.
struct Sequence {
    tokens: Vec<u32>,
    computed: usize,
    table: Vec<u32>,
}

impl Runner {
    pub(crate) fn new(model: &Model) -> Self {
        let mut backend = select(BackendChoice::Cpu, model, 2).unwrap();
        let layout = KvLayout {
            block_size: BLOCK_SIZE,
            blocks: BLOCKS,
            host_blocks: 0,
        };
        backend.allocate(&layout).unwrap();
        Self {
            backend,
            vocab: model.config.vocab_size,
        }
    }

    /// The `count` most likely tokens after each prompt, one after the other; all prompts share the steps.
    pub(crate) fn greedy(&mut self, prompts: Vec<Vec<u32>>, count: usize) -> Vec<Vec<u32>> {
        let lengths: Vec<usize> = prompts.iter().map(Vec::len).collect();
        let mut sequences = sequences(prompts, count);
        let mut output = StepOutput::default();
        loop {
            let (step, sampling) = step(&mut sequences, &lengths, count, CHUNK, None);
            if step.tokens.is_empty() {
                break;
            }
            self.backend.forward(&step, &mut output).unwrap();
            assert_eq!(output.sampled.len(), sampling.len());
            for (sampled, sequence) in output.sampled.iter().zip(sampling) {
                sequences[sequence].tokens.push(sampled.token.unwrap());
            }
        }
        let answers = sequences.into_iter().zip(lengths);
        answers
            .map(|(mut sequence, length)| sequence.tokens.split_off(length))
            .collect()
    }

    /// Logits after the prompt, less their mean; the prompt is computed alone and in one step.
    pub(crate) fn logits(&mut self, prompt: &[u32]) -> Vec<f64> {
        let mut sequences = sequences(vec![prompt.to_vec()], 1);
        let (step, _) = step(
            &mut sequences,
            &[prompt.len()],
            1,
            usize::MAX,
            Some(self.vocab as u32),
        );
        let mut output = StepOutput::default();
        self.backend.forward(&step, &mut output).unwrap();
        let mut row = vec![f64::NAN; self.vocab];
        for (token, logprob) in &output.sampled[0].logprob.as_ref().unwrap().top {
            row[*token as usize] = f64::from(*logprob);
        }
        // Log probabilities differ from logits by a constant.
        let mean = row.iter().sum::<f64>() / row.len() as f64;
        row.iter().map(|logprob| logprob - mean).collect()
    }
}

/// Sequences whose blocks are dealt out of order from all over the pool, with room for `count` more tokens each.
fn sequences(prompts: Vec<Vec<u32>>, count: usize) -> Vec<Sequence> {
    let mut free: Vec<u32> = (1..BLOCKS).collect();
    free.sort_by_key(|block| block.wrapping_mul(0x9e37_79b9));
    let sequences = prompts.into_iter().map(|tokens| Sequence {
        table: free
            .drain(..(tokens.len() + count).div_ceil(BLOCK_SIZE as usize))
            .collect(),
        tokens,
        computed: 0,
    });
    sequences.collect()
}

/// The next step of all sequences that lack tokens, and which of them sample in it.
fn step(
    sequences: &mut [Sequence],
    lengths: &[usize],
    count: usize,
    chunk: usize,
    logprobs: Option<u32>,
) -> (Step, Vec<usize>) {
    let (mut step, mut sampling) = (Step::default(), Vec::new());
    for (index, (sequence, length)) in sequences.iter_mut().zip(lengths).enumerate() {
        if sequence.tokens.len() == length + count {
            continue;
        }
        let start = sequence.computed;
        let new = start..sequence.tokens.len().min(start.saturating_add(chunk));
        let (first, table) = (step.tokens.len() as u32, step.block_tables.len() as u32);
        step.tokens.extend(&sequence.tokens[new.clone()]);
        for position in new.start as u32..new.end as u32 {
            let block = sequence.table[(position / BLOCK_SIZE) as usize];
            step.positions.push(position);
            step.slots.push(block * BLOCK_SIZE + position % BLOCK_SIZE);
        }
        let blocks = new.end.div_ceil(BLOCK_SIZE as usize);
        step.block_tables.extend(&sequence.table[..blocks]);
        let samples = new.end == sequence.tokens.len();
        step.sequences.push(StepSequence {
            tokens: first..step.tokens.len() as u32,
            context_len: new.end as u32,
            block_table: table..step.block_tables.len() as u32,
            sample: samples.then_some(step.samples.len() as u32),
            embed: false,
        });
        if samples {
            sampling.push(index);
            step.samples.push(SampleSpec {
                logprobs,
                ..SampleSpec::greedy()
            });
        }
        sequence.computed = new.end;
    }
    (step, sampling)
}
