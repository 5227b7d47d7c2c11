//! Machine code that the binary brings along, and the record of what it was made from.
//!
//! `kernels/built/` has one archive for each target, and `record.json`: the compiler, the fingerprint of the kernels'
//! text, the SHA-256 of each archive, and what each kernel takes. `cargo run --release -p pointsman-engine --example kernels
//! -- build` makes them all anew; `-- check` compiles everything and says whether they are what comes out.
//!
//! An archive is LZMA over, for each file of kernels: length of its name and of its code as u32 LE, name, code.

use std::collections::BTreeMap;
use std::io::{Read, Write};

use lzma_rust2::{LzmaOptions, LzmaReader, LzmaWriter};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::kernels::{SOURCES, hex};
use super::resources::Resources;

/// Machine code for these, and PTX that newer chips' drivers compile at start.
pub const TARGETS: [&str; 4] = ["sm_80", "sm_90a", "sm_100a", "compute_80"];

/// Archives larger than this, unpacked, are none of ours.
const MAX_BYTES: u64 = 256 << 20;

/// Memory that unpacking may take, in KiB.
const MAX_MEMORY_KIB: u32 = 64 << 10;

/// What is embedded, in the order of [`TARGETS`].
pub static ARCHIVES: [&[u8]; 4] = [
    include_bytes!("kernels/built/sm_80.lzma"),
    include_bytes!("kernels/built/sm_90a.lzma"),
    include_bytes!("kernels/built/sm_100a.lzma"),
    include_bytes!("kernels/built/compute_80.lzma"),
];

/// The record of it.
pub static RECORD: &str = include_str!("kernels/built/record.json");

/// What archives were made from and with.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Record {
    /// The package of the compiler, with its version.
    pub compiler: String,
    /// See [`super::kernels::fingerprint`].
    pub sources: String,
    /// SHA-256 of the archive of each target.
    pub archives: BTreeMap<String, String>,
    /// Of each target of machine code, what its kernels take.
    pub resources: BTreeMap<String, Vec<Resources>>,
}

/// An archive that cannot be unpacked.
#[derive(Debug, thiserror::Error)]
#[error("the embedded kernels cannot be unpacked: {0}")]
pub struct ArchiveError(String);

/// Packs the code of each file of kernels, in the order of [`SOURCES`].
///
/// # Errors
/// When the memory for it cannot be had.
pub fn pack(codes: &[Vec<u8>]) -> std::io::Result<Vec<u8>> {
    let mut plain = Vec::new();
    for (source, code) in SOURCES.iter().zip(codes) {
        plain.extend((source.name.len() as u32).to_le_bytes());
        plain.extend((code.len() as u32).to_le_bytes());
        plain.extend(source.name.as_bytes());
        plain.extend(code);
    }
    let mut options = LzmaOptions::with_preset(9);
    options.dict_size = (plain.len() as u32).next_power_of_two().max(1 << 12);
    let size = Some(plain.len() as u64);
    let mut writer = LzmaWriter::new_use_header(Vec::new(), &options, size)?;
    writer.write_all(&plain)?;
    writer.finish()
}

/// Unpacks an archive: name and code of each file.
///
/// # Errors
/// When it is not one of [`pack`]'s.
pub fn unpack(archive: &[u8]) -> Result<Vec<(String, Vec<u8>)>, ArchiveError> {
    let wrong = |what: &str| ArchiveError(what.to_owned());
    let said = |error: std::io::Error| ArchiveError(error.to_string());
    let reader = LzmaReader::new_mem_limit(archive, MAX_MEMORY_KIB, None).map_err(said)?;
    let mut plain = Vec::new();
    reader
        .take(MAX_BYTES)
        .read_to_end(&mut plain)
        .map_err(said)?;
    let mut rest = plain.as_slice();
    let mut files = Vec::new();
    while !rest.is_empty() {
        let mut length = || {
            let (bytes, after) = rest.split_first_chunk::<4>()?;
            rest = after;
            Some(u32::from_le_bytes(*bytes) as usize)
        };
        let lengths = length().zip(length());
        let (name, code) = lengths.ok_or_else(|| wrong("it ends within a length"))?;
        let ends = || wrong("it ends within a file");
        let (name, after) = rest.split_at_checked(name).ok_or_else(ends)?;
        let (code, after) = after.split_at_checked(code).ok_or_else(ends)?;
        rest = after;
        files.push((String::from_utf8_lossy(name).into_owned(), code.to_vec()));
    }
    Ok(files)
}

/// Hexadecimal SHA-256.
pub fn digest(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

/// Which of [`TARGETS`] serves a chip of this compute capability: machine code made for it, or PTX for chips that are
/// newer than the oldest. None for older ones.
pub fn target_for(major: i32, minor: i32) -> Option<&'static str> {
    match (major, minor) {
        (8, 0) => Some("sm_80"),
        (9, 0) => Some("sm_90a"),
        (10, 0) => Some("sm_100a"),
        (8.., _) => Some("compute_80"),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::super::kernels::fingerprint;
    use super::*;

    const AGAIN: &str =
        "make it again: cargo run --release -p pointsman-engine --example kernels -- build";

    fn record() -> Record {
        serde_json::from_str(RECORD).unwrap()
    }

    #[test]
    fn what_is_embedded_was_made_from_the_text_as_it_is() {
        let record = record();
        assert_eq!(
            record.sources,
            fingerprint(),
            "machine code is stale; {AGAIN}"
        );
        for (target, archive) in TARGETS.iter().zip(ARCHIVES) {
            let recorded = record.archives.get(*target);
            assert_eq!(recorded, Some(&digest(archive)), "{target}; {AGAIN}");
        }
    }

    #[test]
    fn archives_hold_every_file_and_no_kernel_spills() {
        for archive in ARCHIVES {
            let files = unpack(archive).unwrap();
            let names: Vec<&str> = files.iter().map(|file| file.0.as_str()).collect();
            assert_eq!(names, SOURCES.each_ref().map(|source| source.name));
            assert!(files.iter().all(|file| file.1.len() > 1_000));
        }
        let record = record();
        assert_eq!(record.resources.len(), TARGETS.len() - 1);
        for kernel in record.resources.values().flatten() {
            assert_eq!(kernel.spilled_bytes, 0, "{kernel:?}");
            assert!((1..=255).contains(&kernel.registers), "{kernel:?}");
        }
    }

    #[test]
    fn archives_that_are_cut_or_bent_are_errors() {
        let archive = pack(&vec![vec![7; 3_000]; SOURCES.len()]).unwrap();
        assert_eq!(unpack(&archive).unwrap()[0].1, [7; 3_000]);
        for cut in [0, 5, 13, archive.len() / 2] {
            assert!(unpack(&archive[..cut]).is_err(), "cut after {cut}");
        }
        assert!(unpack(&[0xff; 40]).is_err());
    }

    #[test]
    fn chips_get_the_code_that_runs_on_them() {
        assert_eq!(target_for(9, 0), Some("sm_90a"));
        // A cubin for 8.0 would run on 8.9 as well, and one with an `a` on no other chip at all.
        assert_eq!(target_for(8, 9), Some("compute_80"));
        assert_eq!(target_for(12, 0), Some("compute_80"));
        assert_eq!(target_for(7, 5), None);
    }
}
