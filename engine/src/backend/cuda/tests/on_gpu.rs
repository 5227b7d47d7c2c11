//! The same tests on a GPU: with `KERNELS_ON=gpu` in the environment, arrays lie in memory that both sides reach, and
//! launches go to the first device. What is compared, with what and how closely, does not change.

use std::ops::{Deref, DerefMut};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

use cudarc::driver::{result, sys};

use super::super::device::{Activation, Argument, Device, Grid};
use super::super::gpu::Gpu;
use super::super::probe::{Probed, probe};
use super::cpu_run::Shape;

/// Whether kernels run on a GPU.
pub(super) fn wanted() -> bool {
    static WANTED: OnceLock<bool> = OnceLock::new();
    *WANTED.get_or_init(|| match std::env::var("KERNELS_ON").as_deref() {
        Ok("gpu") => {
            let probed = probe();
            assert!(
                matches!(probed, Probed::Devices { .. }),
                "KERNELS_ON=gpu: {probed:?}"
            );
            true
        }
        Ok(other) => panic!("KERNELS_ON={other}: gpu is all that is known; on the CPU without it"),
        Err(_) => false,
    })
}

/// Runs a kernel to its end, so that its arrays can be looked at.
pub(super) fn launch(name: &str, shape: Shape, arguments: &[Argument]) {
    if shape.grid.contains(&0) {
        return;
    }
    let grid = Grid {
        blocks: shape.grid,
        threads: shape.threads,
        shared_bytes: shape.shared_bytes,
    };
    let mut gpu = gpu();
    // SAFETY: the arguments are the caller's word, as on the CPU.
    unsafe { gpu.launch(name, grid, arguments) }.unwrap();
    gpu.wait().unwrap();
}

fn gpu() -> MutexGuard<'static, Gpu> {
    static GPU: OnceLock<Mutex<Gpu>> = OnceLock::new();
    let gpu = GPU.get_or_init(|| Mutex::new(Gpu::new(Activation::Bf16).unwrap()));
    gpu.lock().unwrap_or_else(PoisonError::into_inner)
}

/// 16-byte units of memory: of this process, or of the device as well.
pub(super) struct Units {
    start: *mut u128,
    length: usize,
}

// SAFETY: units own their memory, like a box.
unsafe impl Send for Units {}

impl Units {
    pub(super) fn filled(unit: u128, length: usize) -> Self {
        let start = if wanted() {
            let gpu = gpu();
            gpu.enter().unwrap();
            let global = sys::CUmemAttach_flags::CU_MEM_ATTACH_GLOBAL;
            // SAFETY: the device's context is current.
            let address = unsafe { result::malloc_managed(length * 16, global) }.unwrap();
            std::ptr::with_exposed_provenance_mut(address as usize)
        } else {
            Box::into_raw(vec![unit; length].into_boxed_slice()).cast()
        };
        let mut units = Self { start, length };
        units.fill(unit);
        units
    }
}

impl Drop for Units {
    fn drop(&mut self) {
        if wanted() {
            let gpu = gpu();
            gpu.enter().unwrap();
            // SAFETY: it was taken so, and no kernel is under way after a launch.
            unsafe { result::memory_free(self.start.expose_provenance() as u64) }.unwrap();
        } else {
            let slice = std::ptr::slice_from_raw_parts_mut(self.start, self.length);
            // SAFETY: it was a box of that length.
            drop(unsafe { Box::from_raw(slice) });
        }
    }
}

impl Deref for Units {
    type Target = [u128];

    fn deref(&self) -> &[u128] {
        // SAFETY: as many units were taken, and filled before anybody had them.
        unsafe { std::slice::from_raw_parts(self.start, self.length) }
    }
}

impl DerefMut for Units {
    fn deref_mut(&mut self) -> &mut [u128] {
        // SAFETY: as above, and `self` is borrowed exclusively.
        unsafe { std::slice::from_raw_parts_mut(self.start, self.length) }
    }
}
