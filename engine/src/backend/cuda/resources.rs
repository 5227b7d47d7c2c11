//! What kernels take of a multiprocessor, as the assembler reports it.

use serde::{Deserialize, Serialize};

/// One kernel for one target.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Resources {
    /// The kernel.
    pub kernel: String,
    /// Registers of a thread.
    pub registers: u32,
    /// Bytes of shared memory of a block, without what a launch adds.
    pub shared_bytes: u32,
    /// Bytes of local memory of a thread that arrays take.
    pub stack_bytes: u32,
    /// Bytes that registers are written to memory with for want of more, and read back.
    pub spilled_bytes: u32,
}

/// Reads a log of `ptxas -v`.
pub fn read(log: &str) -> Vec<Resources> {
    let mut kernels: Vec<Resources> = Vec::new();
    for line in log.lines() {
        if let Some((_, rest)) = line.split_once("Compiling entry function '") {
            kernels.push(Resources {
                kernel: rest.split('\'').next().unwrap_or_default().to_owned(),
                ..Resources::default()
            });
        }
        let Some(kernel) = kernels.last_mut() else {
            continue;
        };
        if let Some(bytes) = number_before(line, " bytes stack frame") {
            kernel.stack_bytes = bytes;
            let stores = number_before(line, " bytes spill stores").unwrap_or(0);
            let loads = number_before(line, " bytes spill loads").unwrap_or(0);
            kernel.spilled_bytes = stores + loads;
        }
        if let Some(registers) = number_before(line, " registers") {
            kernel.registers = registers;
            kernel.shared_bytes = number_before(line, " bytes smem").unwrap_or(0);
        }
    }
    kernels
}

/// The number that stands before `words`.
fn number_before(line: &str, words: &str) -> Option<u32> {
    let before = line.get(..line.find(words)?)?;
    let digits = before.rsplit(|c: char| !c.is_ascii_digit()).next()?;
    digits.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_the_assembler_says() {
        let log = "\
ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function 'sample' for 'sm_80'
ptxas info    : Function properties for sample
ptxas         .     16 bytes stack frame, 4 bytes spill stores, 8 bytes spill loads
ptxas info    : Used 64 registers, used 1 barriers, 16 bytes cumulative stack size, 16656 bytes smem, 384 bytes cmem[0]
ptxas info    : Compile time = 8.122 ms
ptxas info    : Compiling entry function 'combine' for 'sm_80'
ptxas info    : Function properties for combine
ptxas         .     0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 32 registers, used 0 barriers";
        let sample = Resources {
            kernel: "sample".to_owned(),
            registers: 64,
            shared_bytes: 16_656,
            stack_bytes: 16,
            spilled_bytes: 12,
        };
        let combine = Resources {
            kernel: "combine".to_owned(),
            registers: 32,
            ..Resources::default()
        };
        assert_eq!(read(log), [sample, combine]);
        assert!(read("nothing of the kind").is_empty());
    }
}
