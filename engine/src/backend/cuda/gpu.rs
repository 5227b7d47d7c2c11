//! An NVIDIA GPU as a device: one context, one stream, memory, and the kernels that were made for the chip.
//!
//! Thin on purpose: nothing here decides what is computed. Everything goes to one stream in order, so no operation waits
//! for another but by its place in it. What goes to the device waits in a ring of pinned memory until the device has come
//! past it; what comes back while the device goes on has a pinned place of its own.

#![expect(unsafe_code, reason = "the driver is called through its C interface")]

use std::collections::{BTreeMap, HashMap};
use std::ffi::{CString, c_void};

use cudarc::driver::{result, sys};

use super::built::{ARCHIVES, RECORD, Record, TARGETS, target_for, unpack};
use super::device::{
    Activation, Argument, Device, DeviceError, Graph, Grid, Memory, Product, StridedCopy, TICKETS,
    Ticket,
};
use super::kernels::{Address, HEAD_DIMS, SOURCES, attention_bytes};
use super::library::{Library, Places};
use super::nccl::Communicator;
use super::nvrtc::Compiler;
use super::ring::{Mark, Ring};

/// Bytes that are staged in pinned memory on their way to the device between two waits; more than that goes directly.
const STAGING_BYTES: usize = 16 << 20;

/// Bytes that one read which is not waited for may bring.
const READ_BYTES: usize = 64 << 10;

/// Bytes from one run to the next that the driver copies runs of as one, at most.
const PITCH_MAX: usize = i32::MAX as usize;

/// More arguments than any kernel has.
const ARGUMENTS_MAX: usize = 16;

/// A GPU.
#[derive(Debug)]
pub struct Gpu {
    name: String,
    context: sys::CUcontext,
    stream: sys::CUstream,
    kernels: HashMap<String, sys::CUfunction>,
    library: Library,
    staging: Staging,
    reads: Reads,
    graphs: BTreeMap<Graph, sys::CUgraphExec>,
    graphs_made: u64,
    /// Of a GPU that computes with others.
    group: Option<Communicator>,
}

// SAFETY: the context is made current on whichever thread uses this, and one thread does at a time.
unsafe impl Send for Gpu {}

/// Pinned memory for what goes to the device.
#[derive(Debug)]
struct Staging {
    memory: *mut u8,
    ring: Ring,
}

/// Pinned memory for what comes back, an event for each place, and what the device has come past when it has happened.
#[derive(Debug)]
struct Reads {
    memory: *mut u8,
    events: [sys::CUevent; TICKETS as usize],
    marks: [Mark; TICKETS as usize],
    begun: u64,
    collected: u64,
}

impl Gpu {
    /// Takes the first device, and loads the kernels for it. The driver must be known to be there.
    ///
    /// # Errors
    /// When the driver fails, or there are no kernels for the chip.
    pub fn new(activation: Activation) -> Result<Self, DeviceError> {
        Self::numbered(0, activation)
    }

    /// Takes the first so many devices, as a group.
    ///
    /// # Errors
    /// As [`Gpu::new`]; and when there are not as many, or they cannot meet.
    pub fn group(ranks: usize, activation: Activation) -> Result<Vec<Self>, DeviceError> {
        let gpus = (0..ranks).map(|number| Self::numbered(number as i32, activation));
        let mut gpus = gpus.collect::<Result<Vec<_>, _>>()?;
        let sides = Communicator::group(ranks).map_err(|reason| DeviceError {
            doing: format!("making a group of {ranks} GPUs"),
            reason,
        })?;
        for (gpu, side) in gpus.iter_mut().zip(sides) {
            gpu.group = Some(side);
        }
        Ok(gpus)
    }

    fn numbered(number: i32, activation: Activation) -> Result<Self, DeviceError> {
        let start = |error: result::DriverError| failed(&format!("starting GPU {number}"), error);
        result::init().map_err(start)?;
        let device = result::device::get(number).map_err(start)?;
        let name = result::device::get_name(device).map_err(start)?;
        let (context, capability) = context_of(device).map_err(start)?;
        let stream =
            result::stream::create(result::stream::StreamKind::NonBlocking).map_err(start)?;
        let target = format!(
            "{name} (compute capability {}.{})",
            capability.0, capability.1
        );
        let kernels = load(capability).map_err(|reason| DeviceError {
            doing: format!("loading kernels for {target}"),
            reason,
        })?;
        let library = Library::new(stream, activation).map_err(|reason| DeviceError {
            doing: "starting cuBLASLt".to_owned(),
            reason,
        })?;
        Ok(Self {
            name: target,
            context,
            stream,
            kernels,
            library,
            staging: Staging::new().map_err(start)?,
            reads: Reads::new().map_err(start)?,
            graphs: BTreeMap::new(),
            graphs_made: 0,
            group: None,
        })
    }

    /// All runs of a copy as one.
    fn copy_matrix(&self, copy: StridedCopy) -> Result<(), DeviceError> {
        let on_device = sys::CUmemorytype::CU_MEMORYTYPE_DEVICE;
        let matrix = sys::CUDA_MEMCPY2D {
            srcXInBytes: 0,
            srcY: 0,
            srcMemoryType: on_device,
            srcHost: std::ptr::null(),
            srcDevice: copy.from,
            srcArray: std::ptr::null_mut(),
            srcPitch: copy.from_stride,
            dstXInBytes: 0,
            dstY: 0,
            dstMemoryType: on_device,
            dstHost: std::ptr::null_mut(),
            dstDevice: copy.to,
            dstArray: std::ptr::null_mut(),
            dstPitch: copy.to_stride,
            WidthInBytes: copy.bytes,
            Height: copy.rows,
        };
        // SAFETY: the runs lie in memory that the caller knows to be as long.
        let copied = unsafe { sys::cuMemcpy2DAsync_v2(&raw const matrix, self.stream) }.result();
        copied.map_err(|error| failed("copying within the device", error))
    }

    /// Has the group do something; a GPU on its own has nobody to do it with.
    fn meet(
        &self,
        doing: &str,
        ask: impl FnOnce(&Communicator, sys::CUstream) -> Result<(), String>,
    ) -> Result<(), DeviceError> {
        self.enter()?;
        let group = self.group.as_ref();
        group
            .map_or(Ok(()), |group| ask(group, self.stream))
            .map_err(|reason| DeviceError {
                doing: doing.to_owned(),
                reason,
            })
    }

    /// The driver's state is the thread's.
    pub(super) fn enter(&self) -> Result<(), DeviceError> {
        // SAFETY: the context lives as long as this.
        let entered = unsafe { result::ctx::set_current(self.context) };
        entered.map_err(|error| failed("taking the context", error))
    }

    pub(super) fn wait(&mut self) -> Result<(), DeviceError> {
        self.enter()?;
        // SAFETY: the stream lives as long as this.
        let waited = unsafe { result::stream::synchronize(self.stream) };
        self.staging.ring.free(self.staging.ring.mark());
        waited.map_err(|error| failed("waiting for the device", error))
    }
}

impl Device for Gpu {
    fn name(&self) -> String {
        self.name.clone()
    }

    fn memory(&self) -> Result<(u64, u64), DeviceError> {
        self.enter()?;
        let memory = result::mem_get_info();
        let (free, total) = memory.map_err(|error| failed("asking for memory", error))?;
        Ok((total as u64, free as u64))
    }

    fn allocate(&mut self, bytes: usize) -> Result<Memory, DeviceError> {
        self.enter()?;
        let bytes = bytes.next_multiple_of(16).max(16);
        // SAFETY: memory that is as long as what is set to zero, and nobody has its address yet.
        let address = unsafe {
            result::malloc_sync(bytes).and_then(|address| {
                result::memset_d8_async(address, 0, bytes, self.stream)?;
                Ok(address)
            })
        };
        let failed = |error| failed(&format!("taking {bytes} bytes"), error);
        Ok(Memory {
            address: address.map_err(failed)?,
            bytes,
        })
    }

    fn free(&mut self, memory: Memory) {
        if memory.bytes > 0 && self.wait().is_ok() {
            // SAFETY: it came from `allocate`, and nothing is under way in it after the wait.
            let _ = unsafe { result::free_sync(memory.address) };
        }
    }

    fn write(&mut self, to: Memory, offset: usize, bytes: &[u8]) -> Result<(), DeviceError> {
        self.enter()?;
        debug_assert!(offset + bytes.len() <= to.bytes);
        let address = to.address + offset as Address;
        let mut staged = self.staging.take(bytes);
        if staged.is_none() {
            self.wait()?;
            staged = self.staging.take(bytes);
        }
        // SAFETY: the memory is as long as the caller was told; staged bytes stay as they are until the device has come
        // past them, and what is not staged is copied before the call returns, with nothing else under way.
        let copied = unsafe {
            match staged {
                Some(staged) => result::memcpy_htod_async(address, staged, self.stream),
                None => result::memcpy_htod_sync(address, bytes),
            }
        };
        copied.map_err(|error| failed("copying to the device", error))
    }

    fn read(&mut self, from: Memory, offset: usize, bytes: &mut [u8]) -> Result<(), DeviceError> {
        self.wait()?;
        debug_assert!(offset + bytes.len() <= from.bytes);
        // SAFETY: the memory is as long as the caller was told, and nothing is under way in it.
        let copied = unsafe { result::memcpy_dtoh_sync(bytes, from.address + offset as Address) };
        copied.map_err(|error| failed("copying from the device", error))
    }

    fn read_later(&mut self, from: Memory, bytes: usize) -> Result<Ticket, DeviceError> {
        self.enter()?;
        let refuse = |reason: String| DeviceError {
            doing: format!("reading {bytes} bytes"),
            reason,
        };
        if bytes > READ_BYTES.min(from.bytes) {
            return Err(refuse(format!(
                "{READ_BYTES} may be read at a time, of {}",
                from.bytes
            )));
        }
        let place = self.reads.begin().map_err(refuse)?;
        self.reads.marks[place] = self.staging.ring.mark();
        let event = self.reads.events[place];
        let to = self.reads.bytes(place, bytes);
        // SAFETY: both memories are as long, and the place is nobody else's until the ticket is collected.
        let begun = unsafe {
            result::memcpy_dtoh_async(to, from.address, self.stream)
                .and_then(|()| result::event::record(event, self.stream))
        };
        begun.map_err(|error| failed("copying from the device", error))?;
        Ok(Ticket(self.reads.begun))
    }

    fn collect(&mut self, ticket: Ticket, bytes: &mut [u8]) -> Result<(), DeviceError> {
        self.enter()?;
        let place = self.reads.end(ticket).map_err(|reason| DeviceError {
            doing: "collecting what was read".to_owned(),
            reason,
        })?;
        // SAFETY: the event lives as long as this, and was recorded for this ticket.
        let happened = unsafe { result::event::synchronize(self.reads.events[place]) };
        happened.map_err(|error| failed("waiting for a read", error))?;
        // What a meeting that was broken off left behind is nothing to go on with.
        if let Some(reason) = self.group.as_ref().and_then(Communicator::broken) {
            return Err(DeviceError {
                doing: "waiting for a read".to_owned(),
                reason,
            });
        }
        self.staging.ring.free(self.reads.marks[place]);
        let length = bytes.len().min(READ_BYTES);
        bytes[..length].copy_from_slice(self.reads.bytes(place, length));
        Ok(())
    }

    fn record(&mut self) -> Result<(), DeviceError> {
        self.enter()?;
        let own = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        // SAFETY: the stream lives as long as this.
        let begun = unsafe { result::stream::begin_capture(self.stream, own) };
        begun.map_err(|error| failed("recording a graph", error))
    }

    fn recorded(&mut self) -> Result<Graph, DeviceError> {
        self.enter()?;
        // SAFETY: the stream is being captured; the graph is destroyed once, and what was made from it lives on.
        let executable = unsafe {
            result::stream::end_capture(self.stream).and_then(|graph| {
                let flags = sys::CUgraphInstantiate_flags_enum(0);
                let executable = result::graph::instantiate(graph, flags);
                let destroyed = result::graph::destroy(graph);
                executable.and_then(|executable| destroyed.map(|()| executable))
            })
        };
        let executable = executable.map_err(|error| failed("making a graph", error))?;
        self.graphs_made += 1;
        let graph = Graph(self.graphs_made);
        self.graphs.insert(graph, executable);
        Ok(graph)
    }

    fn replay(&mut self, graph: Graph) -> Result<(), DeviceError> {
        self.enter()?;
        let executable = self.graphs.get(&graph).copied();
        let executable = executable.ok_or_else(|| DeviceError {
            doing: format!("launching {graph:?}"),
            reason: "it is not there".to_owned(),
        })?;
        // SAFETY: both live as long as this.
        let launched = unsafe { result::graph::launch(executable, self.stream) };
        launched.map_err(|error| failed("launching a graph", error))
    }

    fn forget(&mut self, graph: Graph) {
        if let Some(executable) = self.graphs.remove(&graph)
            && self.wait().is_ok()
        {
            // SAFETY: it was taken out, and nothing of it is under way after the wait.
            let _ = unsafe { result::graph::exec_destroy(executable) };
        }
    }

    fn copy(&mut self, copy: StridedCopy) -> Result<(), DeviceError> {
        self.enter()?;
        if copy.rows > 1 && copy.from_stride.max(copy.to_stride) <= PITCH_MAX {
            return self.copy_matrix(copy);
        }
        for row in 0..copy.rows {
            let at = |first: Address, stride: usize| first + (row * stride) as Address;
            let (from, to) = (at(copy.from, copy.from_stride), at(copy.to, copy.to_stride));
            // SAFETY: the runs lie in memory that the caller knows to be as long.
            let copied = unsafe { result::memcpy_dtod_async(to, from, copy.bytes, self.stream) };
            copied.map_err(|error| failed("copying within the device", error))?;
        }
        Ok(())
    }

    unsafe fn launch(
        &mut self,
        kernel: &str,
        grid: Grid,
        arguments: &[Argument],
    ) -> Result<(), DeviceError> {
        self.enter()?;
        let unknown = || DeviceError {
            doing: format!("launching {kernel}"),
            reason: "there is no such kernel".to_owned(),
        };
        let function = self.kernels.get(kernel).copied().ok_or_else(unknown)?;
        let [x, y, z] = grid.blocks;
        let mut values = [std::ptr::null_mut::<c_void>(); ARGUMENTS_MAX];
        for (value, argument) in values.iter_mut().zip(arguments) {
            *value = argument.value.cast_mut();
        }
        let count = arguments.len().min(ARGUMENTS_MAX);
        // SAFETY: the function is of a module that is never unloaded; arguments are the caller's word.
        let launched = unsafe {
            result::launch_kernel(
                function,
                (x, y, z),
                (grid.threads, 1, 1),
                grid.shared_bytes,
                self.stream,
                &mut values[..count],
            )
        };
        launched.map_err(|error| failed(&format!("launching {kernel}"), error))
    }

    fn rank(&self) -> (usize, usize) {
        self.group.as_ref().map_or((0, 1), Communicator::rank)
    }

    fn add_up(
        &mut self,
        at: Address,
        elements: usize,
        activation: Activation,
    ) -> Result<(), DeviceError> {
        self.meet("adding up what ranks have", |group, stream| {
            // SAFETY: so many elements are the caller's word; the stream is this device's.
            unsafe { group.add_up(stream, at, elements, activation) }
        })
    }

    fn gather(&mut self, from: Address, to: Address, bytes: usize) -> Result<(), DeviceError> {
        self.meet("gathering what ranks have", |group, stream| {
            // SAFETY: so many bytes are the caller's word; the stream is this device's.
            unsafe { group.gather(stream, [from, to], bytes) }
        })
    }

    fn leave(&mut self, reason: &str) {
        if let Some(group) = &self.group {
            group.leave(reason);
        }
    }

    fn multiply(
        &mut self,
        product: Product,
        y: Address,
        x: Address,
        weight: Address,
    ) -> Result<(), DeviceError> {
        self.enter()?;
        let multiplied = self.library.multiply(product, Places { y, x, weight });
        multiplied.map_err(|reason| DeviceError {
            doing: format!("multiplying {product:?}"),
            reason,
        })
    }
}

impl Staging {
    fn new() -> Result<Self, result::DriverError> {
        // SAFETY: pinned memory of the current context, given back with the process.
        let memory = unsafe { result::malloc_host(STAGING_BYTES, 0) }?;
        Ok(Self {
            memory: memory.cast(),
            ring: Ring::new(STAGING_BYTES),
        })
    }

    /// Bytes as they lie in pinned memory from here on; none when there is no room for them.
    fn take(&mut self, bytes: &[u8]) -> Option<&[u8]> {
        let first = self.ring.take(bytes.len())?;
        // SAFETY: the range lies within the memory, and nothing else has it until the ring gives it out again.
        unsafe {
            let to = std::slice::from_raw_parts_mut(self.memory.add(first), bytes.len());
            to.copy_from_slice(bytes);
            Some(to)
        }
    }
}

impl Reads {
    fn new() -> Result<Self, result::DriverError> {
        // SAFETY: pinned memory of the current context, given back with the process.
        let memory = unsafe { result::malloc_host(READ_BYTES * TICKETS as usize, 0) }?;
        let event = || result::event::create(sys::CUevent_flags::CU_EVENT_DISABLE_TIMING);
        Ok(Self {
            memory: memory.cast(),
            events: [event()?, event()?],
            marks: [Mark::default(); TICKETS as usize],
            begun: 0,
            collected: 0,
        })
    }

    /// The place of the next ticket.
    fn begin(&mut self) -> Result<usize, String> {
        if self.begun - self.collected >= TICKETS {
            return Err(format!("{TICKETS} reads are under way already"));
        }
        self.begun += 1;
        Ok((self.begun % TICKETS) as usize)
    }

    /// The place of the ticket that is next to be collected.
    fn end(&mut self, ticket: Ticket) -> Result<usize, String> {
        if ticket.0 != self.collected + 1 || ticket.0 > self.begun {
            return Err(format!(
                "{ticket:?} is not the next: {} were collected",
                self.collected
            ));
        }
        self.collected += 1;
        Ok((ticket.0 % TICKETS) as usize)
    }

    fn bytes(&mut self, place: usize, length: usize) -> &mut [u8] {
        debug_assert!(length <= READ_BYTES && place < TICKETS as usize);
        // SAFETY: the range lies within the memory, which lives as long as the process.
        unsafe { std::slice::from_raw_parts_mut(self.memory.add(place * READ_BYTES), length) }
    }
}

fn context_of(device: sys::CUdevice) -> Result<(sys::CUcontext, (i32, i32)), result::DriverError> {
    use sys::CUdevice_attribute::{
        CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR as MAJOR,
        CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR as MINOR,
    };
    // SAFETY: the device is one that the driver named.
    unsafe {
        let context = result::primary_ctx::retain(device)?;
        result::ctx::set_current(context)?;
        let of = |attribute| result::device::get_attribute(device, attribute);
        Ok((context, (of(MAJOR)?, of(MINOR)?)))
    }
}

/// All kernels for a chip, by name: machine code that was embedded for it; else compiled here, where NVIDIA's compiler is;
/// else PTX, which the driver compiles.
fn load((major, minor): (i32, i32)) -> Result<HashMap<String, sys::CUfunction>, String> {
    let target = target_for(major, minor);
    let target = target.ok_or("they need a chip of compute capability 8.0 or newer")?;
    let images = match Compiler::find() {
        Some(compiler) if target.starts_with("compute_") => {
            let own = format!("sm_{major}{minor}");
            let compile = |source| compiler.compile(source, &own).map(|compiled| compiled.code);
            let compiled: Result<_, _> = SOURCES.iter().map(compile).collect();
            compiled.or_else(|_| embedded(target))?
        }
        _ => embedded(target)?,
    };
    let record: Record = serde_json::from_str(RECORD).map_err(|error| error.to_string())?;
    let names = record.resources.values().next();
    let names = names.ok_or("the record of kernels is empty")?;
    let said = |error: result::DriverError| error.to_string();
    let mut modules = Vec::new();
    for image in &images {
        // SAFETY: a cubin or PTX with its end, as the compiler made it; the driver copies it.
        modules.push(unsafe { result::module::load_data(image.as_ptr().cast()) }.map_err(said)?);
    }
    let mut kernels = HashMap::new();
    for kernel in names {
        let name = CString::new(kernel.kernel.as_str()).map_err(|error| error.to_string())?;
        // SAFETY: modules are loaded and never unloaded.
        let found = modules
            .iter()
            .find_map(|module| unsafe { result::module::get_function(*module, name.clone()).ok() });
        let function = found.ok_or_else(|| format!("{} is missing", kernel.kernel))?;
        allow_shared(&kernel.kernel, function).map_err(said)?;
        kernels.insert(kernel.kernel.clone(), function);
    }
    Ok(kernels)
}

fn embedded(target: &str) -> Result<Vec<Vec<u8>>, String> {
    let archive = TARGETS
        .iter()
        .zip(ARCHIVES)
        .find(|(known, _)| **known == target);
    let (_, archive) = archive.ok_or_else(|| format!("nothing is embedded for {target}"))?;
    let files = unpack(archive).map_err(|error| error.to_string())?;
    Ok(files.into_iter().map(|file| file.1).collect())
}

/// Attention takes more shared memory than a block has without being asked.
fn allow_shared(name: &str, function: sys::CUfunction) -> Result<(), result::DriverError> {
    let head_dim = HEAD_DIMS
        .iter()
        .find(|dim| name.ends_with(&format!("_{dim}")));
    let (Some(head_dim), true) = (
        head_dim,
        name.starts_with("prefill") || name.starts_with("decode"),
    ) else {
        return Ok(());
    };
    let most = sys::CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
    // SAFETY: the function is of a loaded module.
    unsafe {
        result::function::set_function_attribute(function, most, attention_bytes(*head_dim) as i32)
    }
}

fn failed(doing: &str, error: result::DriverError) -> DeviceError {
    DeviceError {
        doing: doing.to_owned(),
        reason: error.to_string(),
    }
}
