//! What the backend asks of a device: memory, kernels, large products. One implementation drives a GPU; the tests have one
//! that runs the same kernels on the CPU, so that everything but the driver's calls is tested without a GPU.
//!
//! Everything is done in the order in which it was asked for; only [`Device::read`] and [`Device::collect`] wait.
//!
//! Launches, products and copies can be recorded, and be asked for again as a whole: a step of decodes is hundreds of launches
//! that take a device less time than a processor needs to ask for each of them.

#![expect(unsafe_code, reason = "a kernel's arguments are pointers")]

use std::ffi::c_void;
use std::ptr;

use super::kernels::Address;

/// The device cannot go on.
#[derive(Debug, thiserror::Error)]
#[error("{doing}: {reason}")]
pub struct DeviceError {
    /// What was asked for.
    pub doing: String,
    /// What the device says.
    pub reason: String,
}

/// Memory of a device, by its address; the device owns it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Memory {
    /// Where it begins.
    pub address: Address,
    /// How long it is.
    pub bytes: usize,
}

/// How a kernel is launched.
#[derive(Clone, Copy, Debug)]
pub struct Grid {
    /// Blocks.
    pub blocks: [u32; 3],
    /// Threads of a block.
    pub threads: u32,
    /// Bytes of shared memory, beyond what the kernel declares.
    pub shared_bytes: u32,
}

/// Types of activations.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activation {
    /// Brain float.
    Bf16,
    /// IEEE half.
    F16,
}

impl Activation {
    /// As in the names of kernels.
    pub fn name(self) -> &'static str {
        match self {
            Self::Bf16 => "bf16",
            Self::F16 => "f16",
        }
    }
}

/// `y = x·wᵀ`: x is `[m, k]` and w `[n, k]` of the activation's type, contiguous; y is `[m, n]` of it or of f32.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Product {
    /// Rows of x.
    pub m: u32,
    /// Rows of w.
    pub n: u32,
    /// Columns of both.
    pub k: u32,
    /// Elements from one row of y to the next.
    pub y_stride: u32,
    /// y is of f32.
    pub wide: bool,
}

/// One of a kernel's arguments: where its value lies until the launch is asked for.
#[derive(Clone, Copy, Debug)]
pub struct Argument {
    pub value: *const c_void,
    pub bytes: usize,
}

impl Argument {
    /// Of a value whose type is the kernel's.
    pub fn of<T: Copy>(value: &T) -> Self {
        Self {
            value: ptr::from_ref(value).cast(),
            bytes: size_of::<T>(),
        }
    }
}

/// Launches and products that a device has recorded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Graph(pub u64);

/// Bytes on their way from the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ticket(pub u64);

/// Reads that may be under way at a time.
pub const TICKETS: u64 = 2;

/// See the module's description.
pub trait Device: Send + std::fmt::Debug {
    /// The device in words.
    fn name(&self) -> String;

    /// Bytes that it has, and of those the bytes that nobody has.
    ///
    /// # Errors
    /// When it does not say.
    fn memory(&self) -> Result<(u64, u64), DeviceError>;

    /// Memory of zeros, of a multiple of 16 bytes.
    ///
    /// # Errors
    /// When there is not as much.
    fn allocate(&mut self, bytes: usize) -> Result<Memory, DeviceError>;

    /// Gives memory back that nothing uses any more.
    fn free(&mut self, memory: Memory);

    /// Copies bytes to memory, from `offset` on.
    ///
    /// # Errors
    /// When the device fails.
    fn write(&mut self, to: Memory, offset: usize, bytes: &[u8]) -> Result<(), DeviceError>;

    /// Waits for everything, and copies bytes from memory, from `offset` on.
    ///
    /// # Errors
    /// When the device fails, now or at anything asked of it before.
    fn read(&mut self, from: Memory, offset: usize, bytes: &mut [u8]) -> Result<(), DeviceError>;

    /// Copies bytes from the beginning of memory, as it is when everything asked for before is done, to where
    /// [`Device::collect`] finds them. At most [`TICKETS`] may be under way.
    ///
    /// # Errors
    /// When the device fails, or has no room for them.
    fn read_later(&mut self, from: Memory, bytes: usize) -> Result<Ticket, DeviceError>;

    /// Waits for what was asked for before a read, and hands out as many bytes as were read. Tickets are collected in
    /// their order.
    ///
    /// # Errors
    /// When the device fails, now or at anything asked of it before.
    fn collect(&mut self, ticket: Ticket, bytes: &mut [u8]) -> Result<(), DeviceError>;

    /// From here on launches, products and copies within the device are recorded, and not done. Nothing else may be asked
    /// for meanwhile.
    ///
    /// # Errors
    /// When the device fails.
    fn record(&mut self) -> Result<(), DeviceError>;

    /// Ends the recording, whether all went well or not.
    ///
    /// # Errors
    /// When what was asked for cannot be recorded.
    fn recorded(&mut self) -> Result<Graph, DeviceError>;

    /// Does everything that was recorded, at the same addresses.
    ///
    /// # Errors
    /// When the device fails, or knows no such graph.
    fn replay(&mut self, graph: Graph) -> Result<(), DeviceError>;

    /// Gives back what a graph takes.
    fn forget(&mut self, graph: Graph);

    /// Copies `rows` runs of `bytes` bytes that begin `stride` bytes apart, in both places.
    ///
    /// # Errors
    /// When the device fails.
    fn copy(&mut self, copy: StridedCopy) -> Result<(), DeviceError>;

    /// Launches a kernel.
    ///
    /// # Safety
    /// The arguments must be values of the kernel's own arguments, in their order and types, and every
    /// address in them must be of memory that is as long as the kernel's description says.
    ///
    /// # Errors
    /// When there is no such kernel, or it cannot be launched so.
    unsafe fn launch(
        &mut self,
        kernel: &str,
        grid: Grid,
        arguments: &[Argument],
    ) -> Result<(), DeviceError>;

    /// Which rank of a group that computes each step together this is, and how many there are.
    fn rank(&self) -> (usize, usize);

    /// Replaces so many activations by their sum over the group. All of its ranks must ask for the same, in the same order;
    /// the same holds for [`Device::gather`].
    ///
    /// # Errors
    /// When the device fails, or the group has broken up.
    fn add_up(
        &mut self,
        at: Address,
        elements: usize,
        activation: Activation,
    ) -> Result<(), DeviceError>;

    /// Puts so many bytes of each rank side by side, in the order of ranks, in all of them.
    ///
    /// # Errors
    /// As [`Device::add_up`].
    fn gather(&mut self, from: Address, to: Address, bytes: usize) -> Result<(), DeviceError>;

    /// Breaks the group up, because this rank cannot go on: nobody waits for it any more.
    fn leave(&mut self, reason: &str);

    /// Multiplies by the device's own library, which is made for many rows.
    ///
    /// # Errors
    /// When the device fails.
    fn multiply(
        &mut self,
        product: Product,
        y: Address,
        x: Address,
        weight: Address,
    ) -> Result<(), DeviceError>;
}

/// See [`Device::copy`].
#[derive(Clone, Copy, Debug)]
pub struct StridedCopy {
    /// Where the first run lies.
    pub from: Address,
    /// Where it goes.
    pub to: Address,
    /// Runs.
    pub rows: usize,
    /// Bytes of one.
    pub bytes: usize,
    /// Bytes from the beginning of one to that of the next.
    pub from_stride: usize,
    /// The same where they go.
    pub to_stride: usize,
}

/// A kernel's arguments, by their values, which live as long as the call.
macro_rules! arguments {
    ($($value:expr),* $(,)?) => {
        &[$($crate::backend::cuda::device::Argument::of(&$value)),*]
    };
}
pub(super) use arguments;
