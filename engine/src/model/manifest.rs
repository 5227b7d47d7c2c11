//! Checking a model folder against the SHA-256 manifest that lies beside its weights.
//!
//! Two forms are read, and where a folder has both, both must hold:
//!
//! ```text
//! SHA256SUMS       <64 hex digits>  <file>                                          as `sha256sum` writes it
//! manifest.json    {"files": [{"file": "…", "size": 123, "sha256": "…"}]}
//! ```
//!
//! Every file that is listed must be there with that content, and every safetensors file that is there must be listed:
//! a manifest that says nothing about a weight file does not vouch for it. Sizes are compared first, because that
//! costs nothing; then files are hashed side by side, the largest first. One file cannot be hashed by two threads, so
//! a model in shards is checked sooner than one in a single file.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use serde::Deserialize;
use sha2::{Digest, Sha256};

use super::ModelError;
use super::raw::{read_json, read_small};
use super::weights::{is_plain_name, map};

/// Manifests, as they may be called.
const SUMS: &str = "SHA256SUMS";
const JSON: &str = "manifest.json";

/// Files that a manifest may list.
const MAX_FILES: usize = 8192;

/// How much is hashed between two looks at whether another thread failed.
const CHUNK_BYTES: usize = 16 << 20;

/// What to do about folders without a manifest.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Verification {
    /// Check where there is one.
    #[default]
    WherePossible,
    /// Refuse weights that none vouches for.
    Required,
}

/// A folder whose files are what its manifest says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Verified {
    /// Files that were hashed.
    pub files: usize,
    /// Their bytes.
    pub bytes: u64,
    /// How long it took.
    pub took: Duration,
}

/// What a manifest says about one file.
#[derive(Debug)]
struct Entry {
    /// The manifest.
    path: PathBuf,
    size: Option<u64>,
    sha256: [u8; 32],
}

/// Entries by file name; a file may be in both manifests.
type Entries = BTreeMap<String, Vec<Entry>>;

/// A file whose size is right.
struct Sized<'a> {
    name: &'a str,
    path: PathBuf,
    bytes: u64,
    entries: &'a [Entry],
}

/// Checks the folder; none when it has no manifest and needs none.
///
/// # Errors
/// Names the manifest, the file, what was expected and what was found.
pub(super) fn verify(
    folder: &Path,
    verification: Verification,
) -> Result<Option<Verified>, ModelError> {
    let started = Instant::now();
    let mut entries = Entries::new();
    read_sums(&folder.join(SUMS), &mut entries)?;
    read_manifest(&folder.join(JSON), &mut entries)?;
    let Some(manifest) = entries.values().flatten().next().map(|entry| &entry.path) else {
        return match verification {
            Verification::WherePossible => Ok(None),
            Verification::Required => Err(ModelError::Malformed {
                path: folder.to_owned(),
                reason: format!("verified weights are required, and there is no {SUMS} or {JSON}"),
            }),
        };
    };
    refuse_unlisted(folder, manifest, &entries)?;
    let mut files: Vec<Sized<'_>> = entries
        .iter()
        .map(|(name, entries)| check_size(folder, name, entries))
        .collect::<Result<_, _>>()?;
    files.sort_by_key(|file| std::cmp::Reverse(file.bytes));
    hash_all(&files)?;
    Ok(Some(Verified {
        files: files.len(),
        bytes: files.iter().map(|file| file.bytes).sum(),
        took: started.elapsed(),
    }))
}

fn read_sums(path: &Path, entries: &mut Entries) -> Result<(), ModelError> {
    let malformed = |reason: String| ModelError::Malformed {
        path: path.to_owned(),
        reason,
    };
    let Some(bytes) = if_there(read_small(path))? else {
        return Ok(());
    };
    let text = String::from_utf8(bytes).map_err(|error| malformed(error.to_string()))?;
    for (number, line) in (1..).zip(text.lines()) {
        if line.trim().is_empty() {
            continue;
        }
        // Between the two is a space, and then one more, or a star for files that were read as binary.
        let parts = line.split_once(' ').and_then(|(digest, rest)| {
            let name = rest.strip_prefix([' ', '*'])?;
            Some((parse_digest(digest)?, name))
        });
        let Some((sha256, name)) = parts else {
            return Err(malformed(format!(
                "line {number} is not a SHA-256 digest, two spaces and a file name"
            )));
        };
        add(path, name, None, sha256, entries)?;
    }
    Ok(())
}

fn read_manifest(path: &Path, entries: &mut Entries) -> Result<(), ModelError> {
    #[derive(Deserialize)]
    struct Manifest {
        files: Vec<Listed>,
    }
    #[derive(Deserialize)]
    struct Listed {
        file: String,
        size: u64,
        sha256: String,
    }
    let Some(manifest) = if_there(read_json::<Manifest>(path))? else {
        return Ok(());
    };
    for Listed { file, size, sha256 } in manifest.files {
        let digest = parse_digest(&sha256).ok_or_else(|| ModelError::Malformed {
            path: path.to_owned(),
            reason: format!("{sha256:?} of {file} is not a SHA-256 digest of 64 hex digits"),
        })?;
        add(path, &file, Some(size), digest, entries)?;
    }
    Ok(())
}

/// Turns a file that is not there into none.
fn if_there<T>(read: Result<T, ModelError>) -> Result<Option<T>, ModelError> {
    match read {
        Err(ModelError::Read { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => {
            Ok(None)
        }
        read => read.map(Some),
    }
}

fn add(
    path: &Path,
    name: &str,
    size: Option<u64>,
    sha256: [u8; 32],
    entries: &mut Entries,
) -> Result<(), ModelError> {
    let malformed = |reason: String| ModelError::Malformed {
        path: path.to_owned(),
        reason,
    };
    if !is_plain_name(name) {
        return Err(malformed(format!("{name} is not a plain file name")));
    }
    if entries.len() >= MAX_FILES {
        return Err(malformed(format!("more than {MAX_FILES} files")));
    }
    let of_file = entries.entry(name.to_owned()).or_default();
    if of_file.iter().any(|entry| entry.path == path) {
        return Err(malformed(format!("{name} is listed twice")));
    }
    of_file.push(Entry {
        path: path.to_owned(),
        size,
        sha256,
    });
    Ok(())
}

fn refuse_unlisted(folder: &Path, manifest: &Path, entries: &Entries) -> Result<(), ModelError> {
    let read = |source| ModelError::Read {
        path: folder.to_owned(),
        source,
    };
    for file in folder.read_dir().map_err(read)? {
        let name = file
            .map_err(read)?
            .file_name()
            .to_string_lossy()
            .into_owned();
        if name.ends_with(".safetensors") && !entries.contains_key(&name) {
            return Err(ModelError::Unverified {
                path: manifest.to_owned(),
                file: name,
                expected: "no weights but those listed".to_owned(),
                found: "a file that is not listed".to_owned(),
            });
        }
    }
    Ok(())
}

fn check_size<'a>(
    folder: &Path,
    name: &'a str,
    entries: &'a [Entry],
) -> Result<Sized<'a>, ModelError> {
    let path = folder.join(name);
    let metadata = std::fs::metadata(&path);
    let bytes = metadata.as_ref().map_or(0, std::fs::Metadata::len);
    for entry in entries {
        let wrong = |expected: String, found: String| ModelError::Unverified {
            path: entry.path.clone(),
            file: name.to_owned(),
            expected,
            found,
        };
        match &metadata {
            Err(error) => return Err(wrong("the file".to_owned(), error.to_string())),
            Ok(metadata) if !metadata.is_file() => {
                return Err(wrong("a file".to_owned(), "something else".to_owned()));
            }
            Ok(_) => {}
        }
        if let Some(size) = entry.size
            && size != bytes
        {
            return Err(wrong(format!("{size} bytes"), format!("{bytes} bytes")));
        }
    }
    Ok(Sized {
        name,
        path,
        bytes,
        entries,
    })
}

/// Hashes all files on as many threads as there are cores; of several errors one is returned.
fn hash_all(files: &[Sized<'_>]) -> Result<(), ModelError> {
    let threads = thread::available_parallelism().map_or(1, usize::from);
    let (next, failed) = (AtomicUsize::new(0), AtomicBool::new(false));
    let work = || {
        while let Some(file) = files.get(next.fetch_add(1, Ordering::Relaxed)) {
            if let Err(error) = file.check(&failed) {
                failed.store(true, Ordering::Relaxed);
                return Err(error);
            }
        }
        Ok(())
    };
    thread::scope(|scope| {
        let others = threads.min(files.len()).saturating_sub(1);
        let others: Vec<_> = (0..others).map(|_| scope.spawn(work)).collect();
        let mut outcome = work();
        for other in others {
            outcome = outcome.and(other.join().unwrap_or_else(|_| Err(hashing_died())));
        }
        outcome
    })
}

fn hashing_died() -> ModelError {
    ModelError::Malformed {
        path: PathBuf::from(SUMS),
        reason: "a thread that computed digests ended unexpectedly".to_owned(),
    }
}

impl Sized<'_> {
    /// Compares the digest, unless another file `failed` and it does not matter any more.
    fn check(&self, failed: &AtomicBool) -> Result<(), ModelError> {
        let mut hasher = Sha256::new();
        if self.bytes > 0 {
            for chunk in map(&self.path)?.chunks(CHUNK_BYTES) {
                if failed.load(Ordering::Relaxed) {
                    return Ok(());
                }
                hasher.update(chunk);
            }
        }
        let found = hasher.finalize();
        let wrong = |entry: &&Entry| entry.sha256.as_slice() != found.as_slice();
        match self.entries.iter().find(wrong) {
            None => Ok(()),
            Some(entry) => Err(ModelError::Unverified {
                path: entry.path.clone(),
                file: self.name.to_owned(),
                expected: format!("SHA-256 {}", hex(&entry.sha256)),
                found: hex(&found),
            }),
        }
    }
}

fn parse_digest(hex: &str) -> Option<[u8; 32]> {
    let mut digest = [0; 32];
    if hex.len() != 64 || !hex.bytes().all(|digit| digit.is_ascii_hexdigit()) {
        return None;
    }
    for (byte, digits) in digest.iter_mut().zip(hex.as_bytes().chunks_exact(2)) {
        *byte = u8::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()?;
    }
    Some(digest)
}

fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write;
    bytes.iter().fold(String::new(), |mut text, byte| {
        // Writing into a String cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

#[cfg(test)]
mod tests;
