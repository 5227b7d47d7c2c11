//! Compiles kernels with NVIDIA's run-time compiler: ahead of time, by the command that makes what the binary embeds, and
//! at start on chips that nothing was embedded for.
//!
//! It needs no toolkit and no device: kernels include nothing but each other, and the compiler is one library. The
//! binary itself is not linked against it; the library is looked for when it is needed.

#![expect(unsafe_code, reason = "the compiler is called through its C interface")]

use std::ffi::{CString, c_char};
use std::ptr;

use cudarc::nvrtc::sys;

use super::kernels::{HEADERS, Source};

/// NVIDIA's library, which is there.
#[derive(Clone, Copy, Debug)]
pub struct Compiler(());

/// What came out.
#[derive(Clone, Debug)]
pub struct Compiled {
    /// A cubin for a target like `sm_90a`, PTX for one like `compute_80`.
    pub code: Vec<u8>,
    /// What the assembler says of registers and memory; empty for PTX.
    pub log: String,
}

/// A text that cannot be compiled.
#[derive(Debug, thiserror::Error)]
#[error("{source_name} for {target}: {reason}")]
pub struct CompileError {
    /// The file.
    pub source_name: &'static str,
    /// What it was compiled for.
    pub target: String,
    /// What the compiler says.
    pub reason: String,
}

impl Compiler {
    /// The library, if it can be loaded. One that is loaded already is found whatever folder it is in.
    pub fn find() -> Option<Self> {
        // SAFETY: only NVIDIA's library is loaded, by its own name; its initialisers have no preconditions.
        unsafe { sys::is_culib_present() }.then_some(Self(()))
    }

    /// The library's version.
    pub fn version(self) -> (i32, i32) {
        let (mut major, mut minor) = (0, 0);
        // SAFETY: the library is there, and both are written before it returns.
        let _ = unsafe { sys::nvrtcVersion(&raw mut major, &raw mut minor) };
        (major, minor)
    }

    /// Compiles one file for one target: `sm_…` for machine code, `compute_…` for PTX.
    ///
    /// # Errors
    /// With the compiler's messages.
    pub fn compile(self, source: &Source, target: &str) -> Result<Compiled, CompileError> {
        let error = |reason: String| CompileError {
            source_name: source.name,
            target: target.to_owned(),
            reason,
        };
        let program = Program::new(source).map_err(error)?;
        let mut options = vec![
            format!("--gpu-architecture={target}"),
            "--std=c++17".to_owned(),
            "-default-device".to_owned(),
        ];
        let machine_code = target.starts_with("sm_");
        if machine_code {
            options.push("--ptxas-options=-v".to_owned());
        }
        program.compile(&options).map_err(error)?;
        let get = |size, read| program.bytes(size, read).map_err(error);
        let code = if machine_code {
            get(sys::nvrtcGetCUBINSize, sys::nvrtcGetCUBIN)?
        } else {
            get(sys::nvrtcGetPTXSize, sys::nvrtcGetPTX)?
        };
        Ok(Compiled {
            code,
            log: program.log(),
        })
    }
}

type SizeOf = unsafe fn(sys::nvrtcProgram, *mut usize) -> sys::nvrtcResult;
type Read = unsafe fn(sys::nvrtcProgram, *mut c_char) -> sys::nvrtcResult;

/// A program and the texts that it points to.
struct Program {
    program: sys::nvrtcProgram,
    _texts: Vec<CString>,
}

impl Program {
    fn new(source: &Source) -> Result<Self, String> {
        let terminated = |text: &str| CString::new(text).map_err(|error| error.to_string());
        let mut texts = vec![terminated(source.name)?, terminated(source.text)?];
        for header in &HEADERS {
            texts.push(terminated(header.name)?);
            texts.push(terminated(header.text)?);
        }
        let (names, contents): (Vec<_>, Vec<_>) = texts[2..]
            .chunks_exact(2)
            .map(|header| (header[0].as_ptr(), header[1].as_ptr()))
            .unzip();
        let mut program = ptr::null_mut();
        // SAFETY: all texts are terminated and live as long as the program; there are as many names as contents.
        let result = unsafe {
            sys::nvrtcCreateProgram(
                &raw mut program,
                texts[1].as_ptr(),
                texts[0].as_ptr(),
                names.len() as i32,
                contents.as_ptr(),
                names.as_ptr(),
            )
        };
        check(result)?;
        Ok(Self {
            program,
            _texts: texts,
        })
    }

    fn compile(&self, options: &[String]) -> Result<(), String> {
        let options: Vec<CString> = options
            .iter()
            .map(|option| CString::new(option.as_str()).map_err(|error| error.to_string()))
            .collect::<Result<_, _>>()?;
        let pointers: Vec<*const c_char> = options.iter().map(|option| option.as_ptr()).collect();
        // SAFETY: the program is one, and as many terminated options are there as it is told.
        let result = unsafe {
            sys::nvrtcCompileProgram(self.program, pointers.len() as i32, pointers.as_ptr())
        };
        check(result).map_err(|reason| format!("{reason}\n{}", self.log()))
    }

    /// What the assembler or the compiler had to say.
    fn log(&self) -> String {
        let bytes = self.bytes(sys::nvrtcGetProgramLogSize, sys::nvrtcGetProgramLog);
        let bytes = bytes.unwrap_or_default();
        let text = String::from_utf8_lossy(&bytes);
        text.trim_end_matches('\0').trim().to_owned()
    }

    fn bytes(&self, size_of: SizeOf, read: Read) -> Result<Vec<u8>, String> {
        let mut size = 0;
        // SAFETY: the program is one, and the size is written before it returns.
        check(unsafe { size_of(self.program, &raw mut size) })?;
        let mut bytes = vec![0_u8; size];
        // SAFETY: there is room for as many bytes as it said.
        check(unsafe { read(self.program, bytes.as_mut_ptr().cast()) })?;
        Ok(bytes)
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        // SAFETY: the program is one, and is not used again.
        let _ = unsafe { sys::nvrtcDestroyProgram(&raw mut self.program) };
    }
}

fn check(result: sys::nvrtcResult) -> Result<(), String> {
    match result {
        sys::nvrtcResult::NVRTC_SUCCESS => Ok(()),
        error => Err(format!("{error:?}")),
    }
}
