//! GPUs of one process as a group, over NCCL: they add up what each has, or put their parts side by side.
//!
//! Every rank asks for the same meetings in the same order, each on a stream of its own, so nobody waits here: the streams
//! do. A rank that fails would leave the others' streams waiting for ever; it breaks the group up instead, and from then
//! on every meeting fails with the reason of the first that failed.
//!
//! The library is looked for at run time by the name that its packages give it. What is asked of it are the few functions
//! of <https://docs.nvidia.com/deeplearning/nccl/user-guide/docs/api.html> that are declared here.

#![expect(unsafe_code, reason = "the library is called through its C interface")]

use std::ffi::{CStr, c_char, c_int, c_void};
use std::ptr;
use std::sync::Arc;
use std::time::Duration;

use cudarc::driver::sys::CUstream;
use libloading::Library;
use parking_lot::Mutex;

use super::device::Activation;
use super::kernels::Address;

/// The library: as it is installed to be run, and to be built with.
const NAMES: [&str; 2] = ["libnccl.so.2", "libnccl.so"];

/// Of `ncclDataType_t`.
const UINT8: c_int = 1;
const FLOAT16: c_int = 6;
const BFLOAT16: c_int = 9;

/// Of `ncclRedOp_t`.
const SUM: c_int = 0;

/// How long a group that breaks up waits for a rank that is just asking for a meeting.
const PATIENCE: Duration = Duration::from_secs(1);

/// One rank's side of a group.
#[derive(Debug)]
pub struct Communicator {
    rank: usize,
    group: Arc<Group>,
}

#[derive(Debug)]
struct Group {
    library: Functions,
    members: Vec<Mutex<Member>>,
    /// Why it is no more.
    broken: Mutex<Option<String>>,
}

#[derive(Clone, Copy, Debug)]
struct Member(*mut c_void);

// SAFETY: a communicator is used under its lock, and the library lets another thread abort it.
unsafe impl Send for Member {}

/// What is asked of the library; all but the last answer 0 when all is well.
#[derive(Debug)]
struct Functions {
    init_all: unsafe extern "C" fn(*mut *mut c_void, c_int, *const c_int) -> c_int,
    all_reduce: unsafe extern "C" fn(
        *const c_void,
        *mut c_void,
        usize,
        c_int,
        c_int,
        *mut c_void,
        CUstream,
    ) -> c_int,
    all_gather: unsafe extern "C" fn(
        *const c_void,
        *mut c_void,
        usize,
        c_int,
        *mut c_void,
        CUstream,
    ) -> c_int,
    abort: unsafe extern "C" fn(*mut c_void) -> c_int,
    error_string: unsafe extern "C" fn(c_int) -> *const c_char,
    /// Behind the functions, which it must outlive.
    _library: Library,
}

impl Functions {
    fn load() -> Result<Self, String> {
        // SAFETY: only NVIDIA's library is loaded, by its own names; its initialisers have no preconditions.
        let mut found = NAMES.iter().map(|name| unsafe { Library::new(*name) });
        let library = found.find_map(Result::ok).ok_or_else(|| {
            let names = NAMES.join(" or ");
            format!("GPUs meet over NCCL, and there is no {names} on the library path")
        })?;
        let missing = |error: libloading::Error| format!("NCCL is too old: {error}");
        // SAFETY: the types are those of the library's header.
        unsafe {
            Ok(Self {
                init_all: *library.get(b"ncclCommInitAll").map_err(missing)?,
                all_reduce: *library.get(b"ncclAllReduce").map_err(missing)?,
                all_gather: *library.get(b"ncclAllGather").map_err(missing)?,
                abort: *library.get(b"ncclCommAbort").map_err(missing)?,
                error_string: *library.get(b"ncclGetErrorString").map_err(missing)?,
                _library: library,
            })
        }
    }

    fn check(&self, doing: &str, result: c_int) -> Result<(), String> {
        if result == 0 {
            return Ok(());
        }
        // SAFETY: the library has a constant string for every number.
        let said = unsafe { CStr::from_ptr((self.error_string)(result)) };
        Err(format!("{doing}: NCCL says {}", said.to_string_lossy()))
    }
}

impl Communicator {
    /// A group of the first `ranks` devices, which this process has made contexts on; one side for each.
    ///
    /// # Errors
    /// When the library is not there, or cannot bring them together.
    pub fn group(ranks: usize) -> Result<Vec<Self>, String> {
        let library = Functions::load()?;
        let devices: Vec<c_int> = (0..).take(ranks).collect();
        let mut members = vec![ptr::null_mut(); ranks];
        // SAFETY: there is room for as many communicators as there are devices.
        let begun =
            unsafe { (library.init_all)(members.as_mut_ptr(), ranks as c_int, devices.as_ptr()) };
        library.check("bringing GPUs together", begun)?;
        let group = Arc::new(Group {
            library,
            members: members
                .into_iter()
                .map(|member| Mutex::new(Member(member)))
                .collect(),
            broken: Mutex::new(None),
        });
        let member = |rank| Self {
            rank,
            group: Arc::clone(&group),
        };
        Ok((0..ranks).map(member).collect())
    }

    /// This rank's number, and how many there are.
    pub fn rank(&self) -> (usize, usize) {
        (self.rank, self.group.members.len())
    }

    /// Replaces so many activations by their sum over all ranks, on this rank's stream.
    ///
    /// # Safety
    /// There must be as many at the address, and the stream must be of this rank's device.
    ///
    /// # Errors
    /// When the library fails, or the group has broken up.
    pub unsafe fn add_up(
        &self,
        stream: CUstream,
        at: Address,
        elements: usize,
        activation: Activation,
    ) -> Result<(), String> {
        let element = match activation {
            Activation::Bf16 => BFLOAT16,
            Activation::F16 => FLOAT16,
        };
        let sum = self.group.library.all_reduce;
        // SAFETY: as the caller says; a sum may take the place of what is added.
        self.meet("adding up", |member| unsafe {
            sum(place(at), place(at), elements, element, SUM, member, stream)
        })
    }

    /// Puts so many bytes of each rank side by side in all of them, on this rank's stream.
    ///
    /// # Safety
    /// There must be as many at the first address, and room for those of all ranks at the second; the stream must be of this
    /// rank's device.
    ///
    /// # Errors
    /// When the library fails, or the group has broken up.
    pub unsafe fn gather(
        &self,
        stream: CUstream,
        [from, to]: [Address; 2],
        bytes: usize,
    ) -> Result<(), String> {
        let gather = self.group.library.all_gather;
        // SAFETY: as the caller says.
        self.meet("gathering", |member| unsafe {
            gather(place(from), place(to), bytes, UINT8, member, stream)
        })
    }

    /// Breaks the group up: meetings that others wait in end, and later ones fail for this reason.
    pub fn leave(&self, reason: &str) {
        {
            let mut broken = self.group.broken.lock();
            if broken.is_some() {
                return;
            }
            *broken = Some(format!("rank {} failed: {reason}", self.rank));
        }
        for member in &self.group.members {
            let locked = member.try_lock_for(PATIENCE);
            // One that stays in the library's hands is waiting there for the others.
            // SAFETY: what the lock is for is written once, before it is shared.
            let communicator =
                locked.map_or_else(|| unsafe { *member.data_ptr() }, |member| *member);
            // SAFETY: it lives until here, and nobody asks it again: meetings look at `broken` under their lock.
            let _ = unsafe { (self.group.library.abort)(communicator.0) };
        }
    }

    fn meet(&self, doing: &str, ask: impl FnOnce(*mut c_void) -> c_int) -> Result<(), String> {
        let group = &self.group;
        let member = group
            .members
            .get(self.rank)
            .ok_or("there is no such rank")?;
        let member = member.lock();
        if let Some(reason) = self.broken() {
            return Err(reason);
        }
        group.library.check(doing, ask(member.0))
    }

    /// Why the group has broken up, if it has.
    pub fn broken(&self) -> Option<String> {
        self.group.broken.lock().clone()
    }
}

fn place(address: Address) -> *mut c_void {
    ptr::with_exposed_provenance_mut(address as usize)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::cuda::probe::{Probed, probe};

    #[test]
    fn without_devices_there_is_no_group() {
        if matches!(probe(), Probed::Devices { .. }) {
            return;
        }
        let expected = match Functions::load() {
            Ok(_) => "bringing GPUs together: NCCL says ",
            Err(_) => {
                "GPUs meet over NCCL, and there is no libnccl.so.2 or libnccl.so on the library path"
            }
        };
        let error = Communicator::group(2).unwrap_err();
        assert!(error.starts_with(expected), "{error}");
    }
}
