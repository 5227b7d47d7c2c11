//! Compiles the kernels with the machine's C++ compiler, once for each text of theirs, and calls them.

use std::ffi::{CStr, c_char, c_void};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use libloading::Library;
use sha2::{Digest, Sha256};

use super::super::device::Argument;
use super::super::kernels::{HEADERS, SOURCES, Source, hex};
use super::on_gpu;

/// What makes CUDA's words C++.
static SHIM: [Source; 2] = [
    Source {
        name: "cpu_run.hpp",
        text: include_str!("../kernels/cpu_run.hpp"),
    },
    Source {
        name: "cpu_mma.hpp",
        text: include_str!("../kernels/cpu_mma.hpp"),
    },
];

/// Products must not be contracted with sums where the text says so; jumps between fibers look like errors to what
/// fortified libraries check.
const OPTIONS: [&str; 9] = [
    "-std=c++17",
    "-O1",
    "-fPIC",
    "-ffp-contract=off",
    "-fvisibility-inlines-hidden",
    "-U_FORTIFY_SOURCE",
    "-Wno-unknown-pragmas",
    "-DCPU_RUN",
    "-xc++",
];

#[derive(Clone, Copy, Debug)]
#[repr(C)]
struct Launch {
    grid: [u32; 3],
    block: [u32; 3],
    shared_bytes: u64,
    order: u64,
}

/// The grid and the block of a launch, and the seed of the order in which its threads go.
#[derive(Clone, Copy, Debug)]
pub(super) struct Shape {
    pub(super) grid: [u32; 3],
    pub(super) threads: u32,
    pub(super) shared_bytes: u32,
    pub(super) order: u64,
}

pub(super) use super::super::device::arguments;

/// Runs a kernel to its end. Its arguments must be those that it has, and point to memory that is there.
pub(super) fn launch(name: &str, shape: Shape, arguments: &[Argument]) {
    type Run = unsafe extern "C" fn(*const Launch, *mut *mut c_void) -> *const c_char;
    if on_gpu::wanted() {
        return on_gpu::launch(name, shape, arguments);
    }
    let launch = Launch {
        grid: shape.grid,
        block: [shape.threads, 1, 1],
        shared_bytes: shape.shared_bytes.into(),
        order: shape.order,
    };
    let mut values: Vec<_> = arguments
        .iter()
        .map(|argument| argument.value.cast_mut())
        .collect();
    // SAFETY: `KERNEL` of cpu_run.hpp gives each kernel a function of this type and name; the arguments are the
    // caller's word.
    let error = unsafe {
        let run = library().get::<Run>(format!("run_{name}")).unwrap();
        run(&raw const launch, values.as_mut_ptr())
    };
    // SAFETY: null, or a string that stays until the next launch of this thread.
    let error = (!error.is_null()).then(|| unsafe { CStr::from_ptr(error) });
    assert!(error.is_none(), "{name}: {error:?}");
}

fn library() -> &'static Library {
    static LIBRARY: OnceLock<Library> = OnceLock::new();
    LIBRARY.get_or_init(|| {
        let path = compiled();
        // SAFETY: it was compiled from our own text and does nothing when it is loaded.
        unsafe { Library::new(path) }.unwrap()
    })
}

/// The library of these very texts, compiled unless there is one.
fn compiled() -> PathBuf {
    let compiler = std::env::var("CXX").unwrap_or_else(|_| "c++".to_owned());
    let mut hash = Sha256::new();
    hash.update(&compiler);
    for option in OPTIONS {
        hash.update(option);
    }
    for source in SOURCES.iter().chain(&HEADERS).chain(&SHIM) {
        hash.update(source.text);
    }
    let name = hex(&hash.finalize()[..8]);
    // The folder of this test's profile within cargo's target folder.
    let program = std::env::current_exe().unwrap();
    let home = program
        .parent()
        .and_then(Path::parent)
        .unwrap()
        .join("kernels-on-cpu");
    std::fs::create_dir_all(&home).unwrap();
    let library = home.join(format!("{name}.so"));
    let lock = std::fs::File::create(home.join("lock")).unwrap();
    lock.lock().unwrap();
    if !library.is_file() {
        compile(&compiler, &home, &library);
    }
    library
}

fn compile(compiler: &str, home: &Path, library: &Path) {
    let folder = tempfile::tempdir_in(home).unwrap();
    for source in SOURCES.iter().chain(&HEADERS).chain(&SHIM) {
        std::fs::write(folder.path().join(source.name), source.text).unwrap();
    }
    // Two at a time, as few machines for tests have more than two processors.
    std::thread::scope(|scope| {
        for share in 0..2 {
            let folder = folder.path();
            scope.spawn(move || {
                for source in SOURCES.iter().skip(share).step_by(2) {
                    let object = format!("{}.o", source.name);
                    let options = OPTIONS.iter().copied();
                    run(
                        compiler,
                        folder,
                        options.chain(["-c", source.name, "-o", &object]),
                    );
                }
            });
        }
    });
    let objects: Vec<String> = SOURCES
        .iter()
        .map(|source| format!("{}.o", source.name))
        .collect();
    let objects = objects.iter().map(String::as_str);
    run(
        compiler,
        folder.path(),
        ["-shared", "-o", "kernels.so"].into_iter().chain(objects),
    );
    std::fs::rename(folder.path().join("kernels.so"), library).unwrap();
}

fn run<'a>(compiler: &str, folder: &Path, options: impl Iterator<Item = &'a str>) {
    let mut command = Command::new(compiler);
    command.current_dir(folder).args(options);
    let output = command.output().unwrap_or_else(|error| {
        panic!(
            "the kernels' tests on the CPU need a C++ compiler, and `{compiler}` cannot be run: {error}. Install g++ \
             or clang, or set CXX."
        )
    });
    assert!(
        output.status.success(),
        "{command:?}\n{}",
        String::from_utf8_lossy(&output.stderr)
    );
}
