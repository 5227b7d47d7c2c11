//! Compiles every kernel for every target, without a GPU, and makes or checks the machine code that the worker embeds.
//!
//! ```sh
//! cargo run --release -p pointsman-engine --example kernels -- build    # writes src/backend/cuda/kernels/built/
//! cargo run --release -p pointsman-engine --example kernels -- check    # fails if that is not what comes out
//! ```
//!
//! The compiler is NVRTC, installed by name from PyPI below `target/`, in one version, so that the same text gives the same
//! bytes. Both commands print what each kernel takes of a multiprocessor, and fail when one spills registers.

#![expect(clippy::print_stdout, reason = "a table is what this is for")]
#![expect(
    unsafe_code,
    reason = "the compiler is loaded from where it was installed"
)]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};

use anyhow::{Context, Result, bail, ensure};
use pointsman_engine::backend::cuda::built::{self, Record, TARGETS};
use pointsman_engine::backend::cuda::kernels::{SOURCES, Source, fingerprint};
use pointsman_engine::backend::cuda::nvrtc::{Compiled, Compiler};
use pointsman_engine::backend::cuda::resources::{self, Resources};

const PACKAGE: &str = "nvidia-cuda-nvrtc==13.0.88";

fn main() -> Result<()> {
    let command = std::env::args().nth(1).unwrap_or_default();
    ensure!(
        matches!(command.as_str(), "build" | "check"),
        "usage: kernels build|check"
    );
    let made = Made::new(compiler()?)?;
    print(&made.resources);
    for kernel in made.resources.values().flatten() {
        ensure!(
            kernel.spilled_bytes == 0,
            "{} spills registers",
            kernel.kernel
        );
    }
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/backend/cuda/kernels/built");
    if command == "build" {
        return made.write(&folder);
    }
    made.check()?;
    println!("what is embedded is what comes out");
    Ok(())
}

/// What the compiler made of the sources.
struct Made {
    /// Of each target, the code of each file.
    codes: Vec<Vec<Vec<u8>>>,
    resources: BTreeMap<String, Vec<Resources>>,
}

impl Made {
    /// Compiles everything, on two threads: each compilation runs on one.
    fn new(compiler: Compiler) -> Result<Self> {
        let jobs: Vec<(&str, &Source)> = TARGETS
            .iter()
            .flat_map(|target| SOURCES.iter().map(move |source| (*target, source)))
            .collect();
        let next = AtomicUsize::new(0);
        let work = || {
            let mut done = Vec::new();
            loop {
                let job = next.fetch_add(1, Ordering::Relaxed);
                let Some((target, source)) = jobs.get(job) else {
                    return done;
                };
                done.push((job, compiler.compile(source, target)));
            }
        };
        let mut done = std::thread::scope(|scope| {
            let other = scope.spawn(work);
            let mut own = work();
            own.extend(other.join().unwrap_or_default());
            own
        });
        done.sort_by_key(|(job, _)| *job);
        let compiled: Vec<Compiled> = done
            .into_iter()
            .map(|(_, compiled)| compiled)
            .collect::<Result<_, _>>()?;
        ensure!(compiled.len() == jobs.len(), "a compilation panicked");
        let mut made = Self {
            codes: Vec::new(),
            resources: BTreeMap::new(),
        };
        for (target, files) in TARGETS.iter().zip(compiled.chunks(SOURCES.len())) {
            let mut kernels: Vec<Resources> = files
                .iter()
                .flat_map(|file| resources::read(&file.log))
                .collect();
            kernels.sort_by(|a, b| a.kernel.cmp(&b.kernel));
            if !kernels.is_empty() {
                made.resources.insert((*target).to_owned(), kernels);
            }
            made.codes
                .push(files.iter().map(|file| file.code.clone()).collect());
        }
        Ok(made)
    }

    fn write(self, folder: &Path) -> Result<()> {
        let mut record = Record {
            compiler: PACKAGE.to_owned(),
            sources: fingerprint(),
            archives: BTreeMap::new(),
            resources: self.resources,
        };
        for (target, codes) in TARGETS.iter().zip(&self.codes) {
            let archive = built::pack(codes)?;
            record
                .archives
                .insert((*target).to_owned(), built::digest(&archive));
            std::fs::write(folder.join(format!("{target}.lzma")), archive)?;
        }
        let record = serde_json::to_string_pretty(&record)?;
        std::fs::write(folder.join("record.json"), record + "\n")?;
        println!("wrote {}", folder.display());
        Ok(())
    }

    /// That what is embedded is this.
    fn check(&self) -> Result<()> {
        const AGAIN: &str = "run `kernels -- build` and commit what it writes";
        let record: Record = serde_json::from_str(built::RECORD).context("record.json")?;
        ensure!(
            record.sources == fingerprint() && record.compiler == PACKAGE,
            "the kernels have changed since: {AGAIN}"
        );
        ensure!(
            record.resources == self.resources,
            "the kernels take other resources than recorded: {AGAIN}"
        );
        for ((target, archive), codes) in TARGETS.iter().zip(built::ARCHIVES).zip(&self.codes) {
            let embedded = built::unpack(archive)?;
            let same = embedded.iter().map(|file| &file.1).eq(codes);
            ensure!(
                same,
                "{target}: other machine code comes out than is embedded: {AGAIN}"
            );
        }
        Ok(())
    }
}

fn print(resources: &BTreeMap<String, Vec<Resources>>) {
    println!(
        "{:<28} {:>8} {:>9} {:>13} {:>11} {:>13}",
        "kernel", "target", "registers", "shared bytes", "stack bytes", "spilled bytes"
    );
    for (target, kernels) in resources {
        for kernel in kernels {
            let Resources {
                kernel,
                registers,
                shared_bytes,
                stack_bytes,
                spilled_bytes,
            } = kernel;
            println!(
                "{kernel:<28} {target:>8} {registers:>9} {shared_bytes:>13} {stack_bytes:>11} {spilled_bytes:>13}"
            );
        }
    }
}

/// The compiler, installed if it is not.
fn compiler() -> Result<Compiler> {
    let folder = installed()?.join("nvidia/cu13/lib");
    for name in ["libnvrtc-builtins.so.13.0", "libnvrtc.so.13"] {
        let path = folder.join(name);
        // SAFETY: NVIDIA's own library, in the version asked for, whose initialisers have no preconditions.
        let library = unsafe { libloading::Library::new(&path) };
        let library = library.with_context(|| format!("cannot load {}", path.display()))?;
        // Whoever asks for it by name finds it as long as it stays loaded.
        std::mem::forget(library);
    }
    Compiler::find().context("the compiler was loaded, and is not found")
}

fn installed() -> Result<PathBuf> {
    let program = std::env::current_exe()?;
    // target/<profile>/examples/kernels
    let target = program.ancestors().nth(3).context("no target folder")?;
    let home = target.join("nvrtc");
    let folder = home.join(PACKAGE.replace("==", "-"));
    if folder.is_dir() {
        return Ok(folder);
    }
    std::fs::create_dir_all(&home)?;
    // Beside the final folder, and then renamed: a folder of that name is always complete.
    let unfinished = tempfile::Builder::new()
        .prefix("unfinished-")
        .tempdir_in(&home)?;
    println!("installing {PACKAGE} below {}", home.display());
    let status = Command::new("python3")
        .args([
            "-m",
            "pip",
            "install",
            "--quiet",
            "--disable-pip-version-check",
            "--no-deps",
            "--target",
        ])
        .arg(unfinished.path())
        .arg(PACKAGE)
        .status()
        .context("cannot run python3 -m pip")?;
    if !status.success() {
        bail!("python3 -m pip install {PACKAGE} failed");
    }
    std::fs::rename(unfinished.keep(), &folder)?;
    Ok(folder)
}
