//! The backend: a model on a device, stepped.
//!
//! A step is begun by asking the device for everything up to the sampled tokens, and finished by waiting for those. The
//! next one may be begun between where nothing else is wanted of the first: it takes its tokens from where the first puts
//! them, and the device does both in their order. Steps of decodes run in graphs.

use half::{bf16, f16};

use std::collections::VecDeque;

use super::answers::{Answers, Questions};
use super::arrays::Arrays;
use super::device::{Activation, Device, DeviceError, Memory, StridedCopy, TICKETS, Ticket};
use super::forward::{Buffer, Buffers, KvPages, Pass, Sizes};
use super::graphs::Graphs;
use super::kernels::HEAD_DIMS;
use super::ops::Ops;
use super::plan::{AttentionPlan, DeviceMemory, GraphKey, kv_bytes, largest_step};
use super::weights::{Weights, activation};
use crate::backend::parallel::TensorParallel;
use crate::backend::{
    Backend, BackendError, BackendInfo, BlockCopy, BlockPlace, KvLayout, SleepLevel, Step,
    StepOutput,
};
use crate::model::{Model, ModelConfig, Shard};

/// Rows wider than this do not fit into the 48 KiB that a block has of shared memory without asking for more.
const WIDTH_MAX: usize = 24_000;

/// Blocks are this long while the largest step is tried.
const PROFILE_BLOCK: u32 = 16;

/// What a worker may ask of a device.
#[derive(Clone, Copy, Debug)]
pub struct CudaOptions {
    /// Share of the device's memory that may be taken, by everything together.
    pub memory_share: f64,
    /// Devices that share the model.
    pub ranks: usize,
    /// Tokens of the largest step.
    pub max_tokens: u32,
    /// Sequences of the largest step.
    pub max_sequences: u32,
}

/// Computes models on one device, or one rank's part of them.
#[derive(Debug)]
pub struct CudaBackend<D> {
    info: BackendInfo,
    device: D,
    activation: Activation,
    config: ModelConfig,
    sizes: Sizes,
    weights: Weights,
    angles: Memory,
    layout: Option<KvLayout>,
    kv: KvPages,
    /// The second tier: `[host_blocks, layers, 2]` blocks.
    host: Vec<u8>,
    plan: AttentionPlan,
    arrays: Arrays,
    /// Where the arrays go.
    uploaded: Buffer,
    buffers: Buffers,
    answers: Answers,
    graphs: Graphs,
    /// Steps that are not finished, in their order.
    begun: VecDeque<Begun>,
    embedding: Vec<u16>,
}

/// A step on the device.
#[derive(Clone, Copy, Debug)]
struct Begun {
    sampled: u32,
    ticket: Option<Ticket>,
    /// Whether nothing but tokens comes of it.
    plain: bool,
}

/// What a model comes to on a device.
struct Loaded {
    activation: Activation,
    weights: Weights,
    angles: Memory,
}

impl Loaded {
    fn new(device: &mut dyn Device, model: &Model, shard: Shard) -> Result<Self, BackendError> {
        let tensors = model.tensors().map_err(|error| wrong(error.to_string()))?;
        let activation = activation(&tensors);
        Ok(Self {
            activation,
            weights: Weights::upload(device, model, activation, shard)?,
            angles: upload_angles(device, &model.config).map_err(start)?,
        })
    }
}

impl<D: Device> CudaBackend<D> {
    /// One rank for each device of a group; a device on its own is a backend of its own.
    ///
    /// # Errors
    /// As [`CudaBackend::new`].
    pub fn group(
        devices: Vec<D>,
        model: &Model,
        options: CudaOptions,
    ) -> Result<Box<dyn Backend>, BackendError>
    where
        D: 'static,
    {
        // They meet in the step that each computes first.
        let ranks = std::thread::scope(|scope| {
            let each = devices.into_iter();
            let each: Vec<_> = each
                .map(|device| scope.spawn(move || Self::new(device, model, options)))
                .collect();
            let panicked = |_| Err(start("a rank panicked"));
            each.into_iter()
                .map(|rank| rank.join().unwrap_or_else(panicked))
                .collect::<Result<Vec<_>, _>>()
        })?;
        let mut ranks = ranks.into_iter();
        let first = ranks.next().ok_or_else(|| start("no device was given"))?;
        if ranks.len() == 0 {
            return Ok(Box::new(first));
        }
        Ok(Box::new(TensorParallel::new(first, ranks)))
    }

    /// Copies the weights of `model` to a device, or its rank's part of them, and computes the largest step once: what is free
    /// after that is what there is for KV blocks, and no later step takes memory. The ranks of a group must be made at the
    /// same time.
    ///
    /// # Errors
    /// When it does not fit, there are no kernels for the model's shape, or it cannot be shared by as many ranks.
    pub fn new(mut device: D, model: &Model, options: CudaOptions) -> Result<Self, BackendError> {
        let (rank, ranks) = device.rank();
        let shard = Shard::new(rank, ranks, &model.config);
        let shard = shard.map_err(|error| wrong(error.to_string()))?;
        let config = shard.config(&model.config);
        check(&config)?;
        let loaded = Loaded::new(&mut device, model, shard);
        let Loaded {
            activation,
            weights,
            angles,
        } = loaded.inspect_err(|error| device.leave(&error.to_string()))?;
        let bytes_per_token = 2 * config.layers * config.kv_heads * config.head_dim * 2;
        let mut backend = Self {
            info: BackendInfo {
                name: "cuda",
                device: format!("{}, {} weights", device.name(), weights.element(activation)),
                kv_bytes_per_token: bytes_per_token,
                kv_memory_bytes: None,
                layers: 1,
                ahead: true,
            },
            device,
            activation,
            sizes: Sizes::of(&config, ranks),
            config,
            weights,
            angles,
            layout: None,
            kv: KvPages::default(),
            host: Vec::new(),
            plan: AttentionPlan::default(),
            arrays: Arrays::default(),
            uploaded: Buffer::default(),
            buffers: Buffers::default(),
            answers: Answers::default(),
            graphs: Graphs::default(),
            begun: VecDeque::with_capacity(TICKETS as usize),
            embedding: Vec::new(),
        };
        let profiled = backend.profile(options);
        profiled.inspect_err(|error| backend.device.leave(&error.to_string()))?;
        Ok(backend)
    }

    /// Computes the largest step in KV memory of its own, which is given back; the buffers stay.
    fn profile(&mut self, options: CudaOptions) -> Result<(), BackendError> {
        let step = largest_step(options.max_tokens, options.max_sequences, PROFILE_BLOCK);
        self.take_kv(&KvLayout {
            block_size: PROFILE_BLOCK,
            blocks: 2,
            host_blocks: 0,
        })
        .map_err(start)?;
        let profiled = self.start(&step);
        let profiled = profiled.and_then(|()| self.complete(&mut StepOutput::default()));
        profiled.map_err(start)?;
        self.give_kv();
        let (total, free) = self.device.memory().map_err(start)?;
        let bytes = kv_bytes(DeviceMemory { total, free }, options.memory_share)?;
        self.info.kv_memory_bytes = Some(bytes);
        Ok(())
    }

    /// Where keys and values lie.
    #[cfg(test)]
    pub(super) fn pages(&self) -> [Memory; 2] {
        [self.kv.keys, self.kv.values]
    }

    #[cfg(test)]
    pub(super) fn device_mut(&mut self) -> &mut D {
        &mut self.device
    }

    /// Asks the device for a step, up to its sampled tokens.
    pub(super) fn start(&mut self, step: &Step) -> Result<(), DeviceError> {
        if self.begun.len() >= TICKETS as usize || self.begun.iter().any(|begun| !begun.plain) {
            return Err(DeviceError {
                doing: "beginning a step".to_owned(),
                reason: "steps before it are to be finished first".to_owned(),
            });
        }
        for copy in &step.copies {
            self.copy(*copy)?;
        }
        let mut begun = Begun {
            sampled: 0,
            ticket: None,
            plain: true,
        };
        if !step.tokens.is_empty() {
            let graph = self.upload(step)?;
            self.layers(graph)?;
            let counts = self.arrays.counts();
            begun.sampled = counts.sampled;
            begun.plain = counts.wanted + counts.prompt_rows + counts.embedded == 0;
            let (mut ops, answers, questions) = self.questions();
            begun.ticket = answers.begin(&mut ops, &questions)?;
        }
        self.begun.push_back(begun);
        Ok(())
    }

    /// A step that cannot go on, here or in any other rank.
    fn stopped(&mut self, error: &DeviceError) -> BackendError {
        let reason = error.to_string();
        self.device.leave(&reason);
        BackendError::Step(reason)
    }

    /// Waits for what a step brings.
    pub(super) fn complete(&mut self, out: &mut StepOutput) -> Result<(), DeviceError> {
        let begun = self.begun.pop_front().ok_or_else(|| DeviceError {
            doing: "finishing a step".to_owned(),
            reason: "none was begun".to_owned(),
        })?;
        self.answers
            .finish(&mut self.device, begun.sampled, begun.ticket, out)?;
        if begun.plain {
            return Ok(());
        }
        let (mut ops, answers, questions) = self.questions();
        answers.explain(&mut ops, &questions, out)?;
        self.embed(out)
    }

    /// Copies a step's arrays to the device; the graph that it runs in, if it does in one.
    fn upload(&mut self, step: &Step) -> Result<Option<GraphKey>, DeviceError> {
        self.plan.fill(step, self.sizes.group());
        let windows = self.config.windows.iter();
        let windows =
            windows.map(|window| window.map(|window| u32::try_from(window).unwrap_or(u32::MAX)));
        // Meetings are asked for one by one: no graph of them has been tried.
        let graph = self.plan.graph(windows).filter(|_| self.sizes.ranks == 1);
        if let Some(key) = graph {
            self.plan.pad(key.rows, step.block_tables.len() as u32);
        }
        self.arrays
            .fill(step, &self.plan, graph, self.config.vocab_size);
        let bytes = self.arrays.bytes();
        let uploaded = self.uploaded.of(&mut self.device, bytes.len())?;
        self.device.write(uploaded, 0, bytes)?;
        Ok(graph)
    }

    /// Computes all layers of the step that was uploaded.
    fn layers(&mut self, graph: Option<GraphKey>) -> Result<(), DeviceError> {
        let sampled = self.arrays.counts().sampled;
        let pass = Pass {
            sizes: &self.sizes,
            weights: &self.weights,
            windows: &self.config.windows,
            angles: self.angles.address,
            kv: &self.kv,
            plan: &self.plan,
            arrays: &self.arrays,
            base: self.uploaded.address(),
            sampled: self
                .answers
                .sampled(&mut self.device, &self.sizes, sampled)?,
            graph,
        };
        self.buffers
            .prepare(&mut self.device, &self.sizes, pass.extent())?;
        let (activation, buffers) = (self.activation, &self.buffers);
        let work = |device: &mut D| {
            let mut ops = Ops { device, activation };
            pass.run(&mut ops, buffers)
        };
        let Some(key) = graph else {
            return work(&mut self.device);
        };
        let mut places = [0; 14];
        let (own, others) = places.split_at_mut(4);
        own.copy_from_slice(&[
            pass.base,
            pass.sampled,
            self.kv.keys.address,
            self.kv.values.address,
        ]);
        others.copy_from_slice(&buffers.places());
        self.graphs.run(&mut self.device, key, &places, work)
    }

    /// What answers to the step that was uploaded last are computed with, and from.
    fn questions(&mut self) -> (Ops<'_>, &mut Answers, Questions<'_>) {
        let questions = Questions {
            sizes: &self.sizes,
            head: self.weights.head,
            arrays: &self.arrays,
            base: self.uploaded.address(),
            rows: self.buffers.picked().address,
        };
        let ops = Ops {
            device: &mut self.device,
            activation: self.activation,
        };
        (ops, &mut self.answers, questions)
    }

    /// Reads back the rows that are answers themselves.
    fn embed(&mut self, out: &mut StepOutput) -> Result<(), DeviceError> {
        let (counts, width) = (self.arrays.counts(), self.config.hidden_size);
        for row in 0..counts.embedded {
            let row = (counts.sampled + counts.prompt_rows + row) as usize;
            self.embedding.resize(width, 0);
            let bytes = bytemuck::cast_slice_mut(&mut self.embedding);
            self.device
                .read(self.buffers.picked(), row * width * 2, bytes)?;
            let widen = |bits: &u16| match self.activation {
                Activation::Bf16 => bf16::from_bits(*bits).to_f32(),
                Activation::F16 => f16::from_bits(*bits).to_f32(),
            };
            out.embeddings
                .push(self.embedding.iter().map(widen).collect());
        }
        Ok(())
    }

    /// Copies one block, all layers of it.
    fn copy(&mut self, copy: BlockCopy) -> Result<(), DeviceError> {
        let (layers, kv) = (self.config.layers, self.kv);
        let host_bytes = 2 * layers * kv.block_bytes;
        for (half, pages) in [kv.keys, kv.values].into_iter().enumerate() {
            let of_block = |block: u32| block as usize * kv.block_bytes;
            let host_of = |block: u32| block as usize * host_bytes + half * layers * kv.block_bytes;
            match (copy.from, copy.to) {
                (BlockPlace::Device(from), BlockPlace::Device(to)) => {
                    self.device.copy(StridedCopy {
                        from: pages.address + of_block(from) as u64,
                        to: pages.address + of_block(to) as u64,
                        rows: layers,
                        bytes: kv.block_bytes,
                        from_stride: kv.layer_bytes,
                        to_stride: kv.layer_bytes,
                    })?;
                }
                (BlockPlace::Host(from), BlockPlace::Host(to)) => {
                    let first = host_of(from);
                    let run = first..first + layers * kv.block_bytes;
                    self.host.copy_within(run, host_of(to));
                }
                (BlockPlace::Device(from), BlockPlace::Host(to)) => {
                    let run = &mut self.host[host_of(to)..][..layers * kv.block_bytes];
                    for (layer, bytes) in run.chunks_exact_mut(kv.block_bytes).enumerate() {
                        let offset = layer * kv.layer_bytes + of_block(from);
                        self.device.read(pages, offset, bytes)?;
                    }
                }
                (BlockPlace::Host(from), BlockPlace::Device(to)) => {
                    let run = &self.host[host_of(from)..][..layers * kv.block_bytes];
                    for (layer, bytes) in run.chunks_exact(kv.block_bytes).enumerate() {
                        let offset = layer * kv.layer_bytes + of_block(to);
                        self.device.write(pages, offset, bytes)?;
                    }
                }
            }
        }
        Ok(())
    }

    fn give_kv(&mut self) {
        let KvPages { keys, values, .. } = std::mem::take(&mut self.kv);
        self.device.free(keys);
        self.device.free(values);
        self.host = Vec::new();
    }

    fn take_kv(&mut self, layout: &KvLayout) -> Result<(), DeviceError> {
        let block_size = layout.block_size as usize;
        let block_bytes = self.config.kv_heads * block_size * self.config.head_dim * 2;
        let layer_bytes = block_bytes * layout.blocks as usize;
        let all = layer_bytes * self.config.layers;
        self.kv = KvPages {
            keys: self.device.allocate(all)?,
            values: self.device.allocate(all)?,
            layer_bytes,
            block_bytes,
            block_log2: layout.block_size.trailing_zeros(),
        };
        self.host = vec![0; 2 * self.config.layers * block_bytes * layout.host_blocks as usize];
        Ok(())
    }
}

impl<D: Device> Backend for CudaBackend<D> {
    fn info(&self) -> &BackendInfo {
        &self.info
    }

    fn allocate(&mut self, layout: &KvLayout) -> Result<(), BackendError> {
        let bytes = self.info.kv_bytes_per_token;
        let bytes = bytes.saturating_mul(layout.block_size as usize * layout.blocks as usize);
        let refuse = |reason: String| BackendError::KvMemory {
            bytes,
            blocks: layout.blocks,
            reason,
        };
        if !layout.block_size.is_power_of_two() {
            let size = layout.block_size;
            return Err(refuse(format!(
                "the block size is {size}; kernels need a power of two"
            )));
        }
        self.layout = Some(*layout);
        self.take_kv(layout)
            .map_err(|error| refuse(error.to_string()))
    }

    fn begin(&mut self, step: &Step) -> Result<(), BackendError> {
        let started = self.start(step);
        started.map_err(|error| self.stopped(&error))
    }

    fn finish(&mut self, out: &mut StepOutput) -> Result<(), BackendError> {
        out.clear();
        let completed = self.complete(out);
        completed.map_err(|error| self.stopped(&error))
    }

    /// Weights stay on the device; they would only come back from their file.
    fn sleep(&mut self, level: SleepLevel) -> Result<(), BackendError> {
        if level == SleepLevel::DiscardAll {
            return Err(self.no_sleep(level));
        }
        self.give_kv();
        Ok(())
    }

    fn wake(&mut self) -> Result<(), BackendError> {
        self.layout.map_or(Ok(()), |layout| self.allocate(&layout))
    }
}

/// That there are kernels for a model's shape.
fn check(config: &ModelConfig) -> Result<(), BackendError> {
    let check = |fine: bool, reason: String| if fine { Ok(()) } else { Err(wrong(reason)) };
    let (head_dim, rotated) = (config.head_dim, config.rope.dim);
    let known = HEAD_DIMS.iter().any(|known| *known as usize == head_dim);
    check(
        known,
        format!("head_dim is {head_dim}; there are kernels for {HEAD_DIMS:?}"),
    )?;
    check(
        rotated.is_multiple_of(4),
        format!("{rotated} elements of a head are rotated; kernels need a multiple of 4"),
    )?;
    let widths = [
        ("hidden_size", config.hidden_size),
        ("intermediate_size", config.intermediate_size),
    ];
    for (name, width) in widths {
        let fine = width.is_multiple_of(8);
        check(
            fine,
            format!("{name} is {width}; kernels need a multiple of 8"),
        )?;
    }
    let reason = format!("hidden_size is {}; at most {WIDTH_MAX}", config.hidden_size);
    check(config.hidden_size <= WIDTH_MAX, reason)
}

/// Cosine and sine of each rotation at each position, as the CPU backend rounds them.
fn upload_angles(device: &mut dyn Device, config: &ModelConfig) -> Result<Memory, DeviceError> {
    let frequencies = config.rope_frequencies();
    let row_bytes = frequencies.len() * 2 * size_of::<f32>();
    let memory = device.allocate((row_bytes * config.max_model_len).max(16))?;
    let mut row = Vec::with_capacity(frequencies.len() * 2);
    for position in 0..config.max_model_len {
        row.clear();
        for frequency in &frequencies {
            let (sine, cosine) = f64::from(position as f32 * frequency).sin_cos();
            row.extend([cosine, sine].map(|x| x as f32 * config.rope.amplitude));
        }
        device.write(memory, position * row_bytes, bytemuck::cast_slice(&row))?;
    }
    Ok(memory)
}

fn wrong(reason: String) -> BackendError {
    BackendError::Model {
        backend: "cuda",
        reason,
    }
}

fn start(error: impl std::fmt::Display) -> BackendError {
    BackendError::Start {
        backend: "cuda",
        reason: error.to_string(),
    }
}
