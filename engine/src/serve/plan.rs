//! What the flags come to for this model on this backend. Pure.

use pointsman_proto::block_hash::DEFAULT_SEED;

use super::ServeError;
use crate::backend::cpu::{CpuOptions, KvCacheType, Quantization};
use crate::backend::cuda::backend::CudaOptions;
use crate::backend::{BackendChoice, BackendInfo};
use crate::export::kv_events::KvEventsConfig;
use crate::flags::{BackendName, Flags, KvCacheDtype, QuantizationName, SchedulingPolicy};
use crate::kv::{HashAlgorithm, HashRecipe};
use crate::model::Model;
use crate::worker::{Policy, SchedulerConfig};

/// KV memory where no flag says how much: room for as many full contexts as may run, but not more than this.
const KV_MEMORY_BYTES_MAX: u64 = 1 << 30;

/// The device; a simulated one is made by `super::simulation`.
pub(super) fn backend(flags: &Flags) -> BackendChoice {
    match flags.backend {
        BackendName::Auto | BackendName::Sim => BackendChoice::Auto,
        BackendName::Cpu => BackendChoice::Cpu,
        BackendName::Cuda => BackendChoice::Cuda(CudaOptions {
            memory_share: flags.gpu_memory_utilization,
            ranks: flags.fleet.tensor_parallel_size as usize,
            max_tokens: flags.max_num_batched_tokens,
            max_sequences: flags.max_num_seqs,
        }),
    }
}

/// How the CPU backend computes.
pub(super) fn cpu(flags: &Flags) -> CpuOptions {
    CpuOptions {
        threads: threads_per_rank(flags),
        ranks: flags.fleet.tensor_parallel_size as usize,
        quantization: flags.quantization.map(|name| match name {
            QuantizationName::Int8 => Quantization::Int8,
        }),
        kv_cache: match flags.kv_cache_dtype {
            KvCacheDtype::Auto | KvCacheDtype::Float32 => KvCacheType::Float32,
            KvCacheDtype::Bfloat16 => KvCacheType::Bfloat16,
        },
    }
}

/// Threads of each rank, data-parallel or tensor-parallel: an equal part of all, and at least one. 0 stands for as many
/// as there are cores.
fn threads_per_rank(flags: &Flags) -> usize {
    let fleet = &flags.fleet;
    let ranks = (fleet.data_parallel_size * fleet.tensor_parallel_size).max(1) as usize;
    let threads = match flags.threads {
        Some(threads) => threads as usize,
        None if ranks == 1 => return 0,
        None => std::thread::available_parallelism().map_or(1, usize::from),
    };
    (threads / ranks).max(1)
}

/// The context in tokens: the flag's if it is not more than the model's.
pub(super) fn context(asked: Option<u32>, model: usize) -> Result<u32, ServeError> {
    let model = u32::try_from(model).unwrap_or(u32::MAX);
    match asked {
        Some(asked) if asked > model => Err(ServeError::Context { asked, model }),
        Some(asked) => Ok(asked),
        None => Ok(model),
    }
}

/// The scheduler's limits.
pub(super) fn scheduler(
    flags: &Flags,
    model: &Model,
    backend: &BackendInfo,
    context_tokens: u32,
) -> SchedulerConfig {
    let prefix_cache = flags.prefix_caching().then(|| {
        let algorithm = flags.prefix_caching_hash_algo;
        HashRecipe::new(algorithm, &hash_seed(flags, algorithm))
    });
    let block_bytes = block_bytes(flags, backend.kv_bytes_per_token as u64);
    let host_blocks = prefix_cache
        .as_ref()
        .map_or(0, |_| host_blocks(flags, block_bytes));
    let kv_events = flags
        .kv_events_config
        .as_ref()
        .is_some_and(KvEventsConfig::publishes);
    SchedulerConfig {
        block_size: flags.block_size,
        blocks: kv_blocks(flags, backend, context_tokens),
        host_blocks,
        max_num_seqs: flags.max_num_seqs,
        max_num_batched_tokens: flags.max_num_batched_tokens,
        max_num_queued: flags.max_num_queued_reqs,
        max_model_len: context_tokens,
        vocab_size: u32::try_from(model.config.vocab_size).unwrap_or(u32::MAX),
        kv_events: kv_events && prefix_cache.is_some(),
        prefix_cache,
        eos_token_ids: model.generation.eos_token_ids.clone(),
        seed: flags.seed,
        policy: match flags.scheduling_policy {
            SchedulingPolicy::Fcfs => Policy::Fcfs,
            SchedulingPolicy::Priority => Policy::Priority,
        },
        max_num_queued_tokens: flags.max_num_queued_tokens,
        long_prefill_token_threshold: (flags.long_prefill_token_threshold > 0)
            .then_some(flags.long_prefill_token_threshold),
        max_decode_slowdown: (flags.max_decode_slowdown != 0.0)
            .then_some(flags.max_decode_slowdown),
        layers: backend.layers,
    }
}

/// Number of KV blocks, the null block included: as said, or as many as the memory holds.
fn kv_blocks(flags: &Flags, backend: &BackendInfo, context_tokens: u32) -> u32 {
    if let Some(blocks) = flags.num_gpu_blocks_override {
        return blocks;
    }
    let block_bytes = block_bytes(flags, backend.kv_bytes_per_token as u64);
    let blocks = if let Some(bytes) = flags.kv_cache_memory_bytes.or(backend.kv_memory_bytes) {
        bytes / block_bytes
    } else {
        let per_request = context_tokens.div_ceil(flags.block_size);
        let all = u64::from(per_request) * u64::from(flags.max_num_seqs) + 1;
        all.min(KV_MEMORY_BYTES_MAX / block_bytes)
    };
    u32::try_from(blocks).unwrap_or(u32::MAX)
}

fn block_bytes(flags: &Flags, bytes_per_token: u64) -> u64 {
    (bytes_per_token * u64::from(flags.block_size)).max(1)
}

/// Blocks of the second tier: as many as its memory holds.
fn host_blocks(flags: &Flags, block_bytes: u64) -> u32 {
    // One number less than u32 has, because the tier's list counts one place more than it has blocks.
    u32::try_from(flags.kv_offloading_size / block_bytes).map_or(u32::MAX - 1, |blocks| blocks)
}

/// The seed that was chosen, or vLLM's, or for this process alone.
fn hash_seed(flags: &Flags, algorithm: HashAlgorithm) -> String {
    match &flags.block_hash_seed {
        Some(seed) => seed.clone(),
        None if algorithm.wants_random_seed() => format!("{:032x}", rand::random::<u128>()),
        None => DEFAULT_SEED.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    fn blocks(flags: &[&str], bytes_per_token: usize) -> u32 {
        let flags = Flags::parse_from(["engine", "--model", "m"].iter().chain(flags));
        kv_blocks(&flags, &info(bytes_per_token, None), 2048)
    }

    fn info(bytes_per_token: usize, kv_memory_bytes: Option<u64>) -> BackendInfo {
        BackendInfo {
            name: "test",
            device: String::new(),
            kv_bytes_per_token: bytes_per_token,
            kv_memory_bytes,
            layers: 1,
            ahead: false,
        }
    }

    #[test]
    fn a_device_with_memory_of_its_own_gives_all_of_it() {
        let flags = Flags::parse_from(["engine", "--model", "m"]);
        let device = info(1 << 20, Some(160 << 30));
        assert_eq!(kv_blocks(&flags, &device, 2048), 10_240);
    }

    #[test]
    fn blocks_come_from_the_number_the_memory_or_the_contexts() {
        assert_eq!(
            blocks(
                &[
                    "--num-gpu-blocks-override",
                    "7",
                    "--kv-cache-memory-bytes",
                    "1G"
                ],
                1024
            ),
            7
        );
        assert_eq!(blocks(&["--kv-cache-memory-bytes", "1MiB"], 1024), 64);
        assert_eq!(blocks(&["--max-num-seqs", "2"], 1024), 2 * 128 + 1);
        assert_eq!(blocks(&[], 1 << 20), 64, "the default is bounded by memory");
    }

    #[test]
    fn the_second_tier_has_the_blocks_that_its_memory_holds() {
        let blocks = |size| {
            let flags = Flags::parse_from(["engine", "--model", "m", "--kv-offloading-size", size]);
            host_blocks(&flags, block_bytes(&flags, 1024))
        };
        assert_eq!(blocks("0"), 0);
        assert_eq!(blocks("1MiB"), 64);
        assert_eq!(blocks("0.5"), 32_768);
    }

    #[test]
    fn seeds_are_random_where_that_keeps_strangers_apart() {
        let seed = |flags: &[&str], algorithm| {
            let flags = Flags::parse_from(["engine", "--model", "m"].iter().chain(flags));
            hash_seed(&flags, algorithm)
        };
        assert_eq!(seed(&[], HashAlgorithm::Sha256Cbor), DEFAULT_SEED);
        assert_ne!(
            seed(&[], HashAlgorithm::Siphash),
            seed(&[], HashAlgorithm::Siphash)
        );
        let chosen = ["--block-hash-seed", "0"];
        assert_eq!(seed(&chosen, HashAlgorithm::Siphash), "0");
    }

    #[test]
    fn the_context_is_the_models_at_most() {
        assert_eq!(context(None, 2048).unwrap(), 2048);
        assert_eq!(context(Some(100), 2048).unwrap(), 100);
        assert!(context(Some(4096), 2048).is_err());
    }
}
