//! How fast the kernels are on a GPU, at the shapes of an 8B Llama: beside the copy bandwidth and the matrix rate measured
//! in the same run.
//!
//! `cargo bench -p pointsman-engine --bench cuda` prints one JSON object a row: what was run, how long it took, the bytes it
//! has to move and the operations it has to do, and what share of the measured limit that is. Weights are several copies of
//! which each run takes another, and pages are more than a cache holds. Without a GPU it says so and does nothing.

#![expect(clippy::print_stdout, reason = "rows are what this is for")]

use std::time::Instant;

use pointsman_engine::backend::cuda::device::{
    Activation, Device, DeviceError, Memory, StridedCopy,
};
use pointsman_engine::backend::cuda::gpu::Gpu;
use pointsman_engine::backend::cuda::kernels::{AttentionArguments, SPLITS_MAX, SequenceOfStep};
use pointsman_engine::backend::cuda::ops::{Multiply, Ops};
use pointsman_engine::backend::cuda::plan::splits_of;
use pointsman_engine::backend::cuda::probe::{Probed, probe};

const HIDDEN: u32 = 4_096;
const INNER: u32 = 14_336;
const HEADS: u32 = 32;
const KV_HEADS: u32 = 8;
const HEAD_DIM: u32 = 128;
const VOCABULARY: u32 = 128_256;
const BLOCK_LOG2: u32 = 4;

/// Runs that are timed together, and those before them.
const RUNS: usize = 40;
const WARM_UP: usize = 8;

/// More than a chip's cache holds.
const FAR: usize = 512 << 20;

fn main() -> Result<(), DeviceError> {
    if !matches!(probe(), Probed::Devices { .. }) {
        println!("no GPU: nothing to measure");
        return Ok(());
    }
    let mut bench = Bench::new()?;
    println!("{}", serde_json::json!({ "device": bench.gpu.name() }));
    bench.limits()?;
    for rows in [1, 8, 16] {
        bench.products(rows)?;
    }
    for (batch, context) in [(1, 32_768), (32, 4_096), (64, 1_024)] {
        bench.decode(batch, context)?;
    }
    for tokens in [512, 8_192] {
        bench.prefill(tokens)?;
    }
    Ok(())
}

struct Bench {
    gpu: Gpu,
    /// Weights and pages.
    far: Memory,
    /// Activations.
    near: Memory,
    out: Memory,
    /// Bytes a second, read and written.
    copy_rate: f64,
    /// Operations a second.
    matrix_rate: f64,
}

/// What has to be done at least.
#[derive(Clone, Copy)]
struct Work {
    bytes: f64,
    operations: f64,
}

impl Bench {
    fn new() -> Result<Self, DeviceError> {
        let mut gpu = Gpu::new(Activation::Bf16)?;
        Ok(Self {
            far: gpu.allocate(4 * FAR)?,
            near: gpu.allocate(FAR)?,
            out: gpu.allocate(FAR)?,
            gpu,
            copy_rate: f64::INFINITY,
            matrix_rate: f64::INFINITY,
        })
    }

    /// Seconds of one run; `run` is told how many were before it.
    fn time(
        &mut self,
        mut run: impl FnMut(&mut Gpu, usize) -> Result<(), DeviceError>,
    ) -> Result<f64, DeviceError> {
        let mut word = [0; 4];
        for index in 0..WARM_UP {
            run(&mut self.gpu, index)?;
        }
        self.gpu.read(self.out, 0, &mut word)?;
        let start = Instant::now();
        for index in 0..RUNS {
            run(&mut self.gpu, index)?;
        }
        self.gpu.read(self.out, 0, &mut word)?;
        Ok(start.elapsed().as_secs_f64() / RUNS as f64)
    }

    fn row(&self, what: &str, seconds: f64, work: Work) {
        let row = serde_json::json!({
            "what": what,
            "us": (seconds * 1e7).round() / 10.0,
            "bytes": work.bytes,
            "operations": work.operations,
            "share_of_copy_rate": work.bytes / seconds / self.copy_rate,
            "share_of_matrix_rate": work.operations / seconds / self.matrix_rate,
        });
        println!("{row}");
    }

    /// What the others are compared with.
    fn limits(&mut self) -> Result<(), DeviceError> {
        let (far, out) = (self.far, self.out);
        let seconds = self.time(|gpu, index| {
            gpu.copy(StridedCopy {
                from: far.address + (index % 4 * FAR) as u64,
                to: out.address,
                rows: 1,
                bytes: FAR,
                from_stride: 0,
                to_stride: 0,
            })
        })?;
        self.copy_rate = 2.0 * FAR as f64 / seconds;
        let (m, n, k) = (8_192, 2 * INNER, HIDDEN);
        let product = self.product(m, n, k, false);
        let seconds = self.time(|gpu, _| multiply(gpu, product))?;
        self.matrix_rate = 2.0 * f64::from(m) * f64::from(n) * f64::from(k) / seconds;
        let limits = serde_json::json!({
            "copy_bytes_per_second": self.copy_rate, "matrix_operations_per_second": self.matrix_rate
        });
        println!("{limits}");
        Ok(())
    }

    fn product(&self, m: u32, n: u32, k: u32, wide: bool) -> Multiply {
        Multiply {
            y: self.out.address,
            x: self.near.address,
            weight: self.far.address,
            m,
            n,
            k,
            y_stride: n,
            wide,
        }
    }

    fn products(&mut self, m: u32) -> Result<(), DeviceError> {
        let qkv = (HEADS + 2 * KV_HEADS) * HEAD_DIM;
        for (name, n, k, wide) in [
            ("qkv", qkv, HIDDEN, false),
            ("o", HIDDEN, HEADS * HEAD_DIM, false),
            ("gate_up", 2 * INNER, HIDDEN, false),
            ("down", HIDDEN, INNER, false),
            ("head", VOCABULARY, HIDDEN, true),
        ] {
            let product = self.product(m, n, k, wide);
            let bytes = u64::from(n) * u64::from(k) * 2;
            let copies = (4 * FAR) as u64 / bytes;
            let seconds = self.time(|gpu, index| {
                let weight = product.weight + index as u64 % copies * bytes;
                multiply(gpu, Multiply { weight, ..product })
            })?;
            let work = Work {
                bytes: bytes as f64,
                operations: bytes as f64 * f64::from(m),
            };
            self.row(&format!("{name}, {m} rows"), seconds, work);
        }
        Ok(())
    }

    /// The arguments of attention over `batch` contexts that lie one after the other, and its arrays' memory.
    fn attention(
        &mut self,
        sequences: &[SequenceOfStep],
        blocks: u32,
        work: &[u32],
    ) -> Result<(AttentionArguments, [Memory; 3]), DeviceError> {
        let tables: Vec<u32> = (0..blocks).collect();
        let mut upload = |bytes: &[u8]| {
            let memory = self.gpu.allocate(bytes.len())?;
            self.gpu.write(memory, 0, bytes)?;
            Ok::<_, DeviceError>(memory)
        };
        let arrays = [
            upload(bytemuck::cast_slice(sequences))?,
            upload(bytemuck::cast_slice(&tables))?,
            upload(bytemuck::cast_slice(work))?,
        ];
        let arguments = AttentionArguments {
            queries: self.near.address,
            keys: self.far.address,
            values: self.far.address + (2 * FAR) as u64,
            out: self.out.address,
            partial_sums: self.near.address + (FAR / 2) as u64,
            partial_norms: self.out.address + (FAR / 2) as u64,
            sequences: arrays[0].address,
            block_tables: arrays[1].address,
            work: arrays[2].address,
            query_stride: (HEADS + 2 * KV_HEADS) * HEAD_DIM,
            heads: HEADS,
            kv_heads: KV_HEADS,
            block_log2: BLOCK_LOG2,
            window: 0,
            scale: 0.1,
        };
        Ok((arguments, arrays))
    }

    fn decode(&mut self, batch: u32, context: u32) -> Result<(), DeviceError> {
        let blocks_each = context >> BLOCK_LOG2;
        let sequence = |index: u32| SequenceOfStep {
            first_token: index,
            new_tokens: 1,
            context,
            first_block: index * blocks_each,
        };
        let sequences: Vec<SequenceOfStep> = (0..batch).map(sequence).collect();
        let all: Vec<u32> = (0..batch).collect();
        let (arguments, arrays) = self.attention(&sequences, batch * blocks_each, &all)?;
        let splits = splits_of(context, None).min(SPLITS_MAX);
        let seconds = self.time(|gpu, _| ops(gpu).decode((batch, splits), HEAD_DIM, arguments))?;
        let keys = f64::from(batch) * f64::from(context) * f64::from(HEAD_DIM);
        let work = Work {
            bytes: keys * f64::from(KV_HEADS) * 4.0,
            operations: keys * f64::from(HEADS) * 4.0,
        };
        self.row(
            &format!("decode attention, {batch} x {context}"),
            seconds,
            work,
        );
        for memory in arrays {
            self.gpu.free(memory);
        }
        Ok(())
    }

    fn prefill(&mut self, tokens: u32) -> Result<(), DeviceError> {
        let sequence = SequenceOfStep {
            first_token: 0,
            new_tokens: tokens,
            context: tokens,
            first_block: 0,
        };
        let rows = tokens * (HEADS / KV_HEADS);
        let tiles: Vec<u32> = (0..rows)
            .step_by(64)
            .rev()
            .flat_map(|row| [0, row])
            .collect();
        let (arguments, arrays) = self.attention(&[sequence], tokens >> BLOCK_LOG2, &tiles)?;
        let count = tiles.len() as u32 / 2;
        let seconds = self.time(|gpu, _| ops(gpu).prefill(count, HEAD_DIM, arguments))?;
        let pairs = f64::from(tokens) * f64::from(tokens + 1) / 2.0;
        let width = f64::from(HEADS + KV_HEADS) * f64::from(HEAD_DIM);
        let work = Work {
            bytes: f64::from(tokens) * width * 4.0,
            operations: pairs * f64::from(HEADS * HEAD_DIM) * 4.0,
        };
        self.row(&format!("prefill attention, {tokens}"), seconds, work);
        for memory in arrays {
            self.gpu.free(memory);
        }
        Ok(())
    }
}

fn ops(gpu: &mut Gpu) -> Ops<'_> {
    Ops {
        device: gpu,
        activation: Activation::Bf16,
    }
}

fn multiply(gpu: &mut Gpu, product: Multiply) -> Result<(), DeviceError> {
    ops(gpu).multiply(product)
}
