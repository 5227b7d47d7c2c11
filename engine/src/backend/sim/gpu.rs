//! The GPUs that can be simulated: what their data sheets say.
//!
//! Rates are peaks; what share of them software reaches is the time model's business. Memory is what the driver
//! reports as total.

const MIB: u64 = 1 << 20;

/// One GPU.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Gpu {
    /// What `--sim-gpu` calls it.
    pub name: &'static str,
    /// Dense bf16 tensor-core rate in FLOP/s.
    pub flops: f64,
    /// Memory bandwidth in bytes/s.
    pub bandwidth: f64,
    /// Memory in bytes.
    pub memory: u64,
    /// To each other GPU of a tensor-parallel group, bytes/s one way: NVLink, or PCIe where there is none.
    pub link: f64,
    /// To the host's memory, bytes/s one way: PCIe 4 or 5.
    pub host: f64,
}

/// The GPUs by name: A100 and H100 and H200 in their SXM form, B200 in an HGX board, L40S on PCIe.
pub const GPUS: [Gpu; 5] = [
    Gpu {
        name: "a100-80g",
        flops: 312e12,
        bandwidth: 2.039e12,
        memory: 81_920 * MIB,
        link: 300e9,
        host: 25e9,
    },
    Gpu {
        name: "h100",
        flops: 989e12,
        bandwidth: 3.35e12,
        memory: 81_559 * MIB,
        link: 450e9,
        host: 50e9,
    },
    Gpu {
        name: "h200",
        flops: 989e12,
        bandwidth: 4.8e12,
        memory: 143_771 * MIB,
        link: 450e9,
        host: 50e9,
    },
    Gpu {
        name: "b200",
        flops: 2250e12,
        bandwidth: 8.0e12,
        memory: 183_359 * MIB,
        link: 900e9,
        host: 50e9,
    },
    Gpu {
        name: "l40s",
        flops: 362e12,
        bandwidth: 0.864e12,
        memory: 46_068 * MIB,
        link: 25e9,
        host: 25e9,
    },
];

impl Gpu {
    /// The GPU of that name.
    pub fn named(name: &str) -> Option<Self> {
        GPUS.into_iter().find(|gpu| gpu.name == name)
    }
}
