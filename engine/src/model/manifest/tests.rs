//! Folders whose files are what the manifest says, and every way in which they can differ.

use serde_json::json;
use tempfile::TempDir;

use super::*;

fn digest(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

/// Two weight files and an empty one, without a manifest.
fn folder() -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    for (name, bytes) in [
        ("a.safetensors", "first"),
        ("b.safetensors", "second"),
        ("none", ""),
    ] {
        std::fs::write(folder.path().join(name), bytes).unwrap();
    }
    folder
}

fn write_sums(folder: &TempDir, lines: &[String]) {
    std::fs::write(folder.path().join(SUMS), lines.join("\n") + "\n").unwrap();
}

fn right_sums() -> Vec<String> {
    vec![
        format!("{}  a.safetensors", digest(b"first")),
        format!("{} *b.safetensors", digest(b"second").to_uppercase()),
        String::new(),
        format!("{}  none", digest(b"")),
    ]
}

fn write_json(folder: &TempDir, size: u64, sha256: &str) {
    let files = json!([
        {"file": "a.safetensors", "size": size, "sha256": sha256},
        {"file": "b.safetensors", "size": 6, "sha256": digest(b"second"), "note": "ignored"}
    ]);
    let text = json!({"files": files, "signed_by": "nobody"}).to_string();
    std::fs::write(folder.path().join(JSON), text).unwrap();
}

fn check(folder: &TempDir) -> Result<Option<Verified>, String> {
    verify(folder.path(), Verification::Required).map_err(|error| {
        let text = error.to_string();
        let inside = text.strip_prefix(&format!("{}", folder.path().display()));
        inside
            .unwrap_or_else(|| panic!("{text} names no file"))
            .to_owned()
    })
}

#[test]
fn files_that_are_as_listed_are_verified() {
    let folder = folder();
    write_sums(&folder, &right_sums());
    let verified = check(&folder).unwrap().unwrap();
    assert_eq!((verified.files, verified.bytes), (3, 11));
    write_json(&folder, 5, &digest(b"first"));
    let both = check(&folder).unwrap().unwrap();
    assert_eq!(
        (both.files, both.bytes),
        (3, 11),
        "each file is hashed once"
    );
    std::fs::remove_file(folder.path().join(SUMS)).unwrap();
    assert_eq!(check(&folder).unwrap().unwrap().files, 2);
}

#[test]
fn a_folder_without_a_manifest_is_refused_only_when_one_is_required() {
    let folder = folder();
    let lenient = verify(folder.path(), Verification::WherePossible).unwrap();
    assert_eq!(lenient, None);
    assert_eq!(
        check(&folder).unwrap_err(),
        ": verified weights are required, and there is no SHA256SUMS or manifest.json"
    );
}

#[test]
fn a_changed_file_is_named_with_both_digests() {
    let folder = folder();
    write_sums(&folder, &right_sums());
    std::fs::write(folder.path().join("b.safetensors"), "sEcond").unwrap();
    let (expected, found) = (digest(b"second"), digest(b"sEcond"));
    assert_eq!(
        check(&folder).unwrap_err(),
        format!("/SHA256SUMS: file b.safetensors: expected SHA-256 {expected}, found {found}")
    );
    let lenient = verify(folder.path(), Verification::WherePossible);
    assert!(lenient.is_err(), "a manifest that is there must hold");
}

#[test]
fn a_wrong_size_is_found_before_anything_is_hashed() {
    let folder = folder();
    write_json(&folder, 4, &digest(b"anything"));
    assert_eq!(
        check(&folder).unwrap_err(),
        "/manifest.json: file a.safetensors: expected 4 bytes, found 5 bytes"
    );
}

#[test]
fn where_two_manifests_disagree_neither_is_believed() {
    let folder = folder();
    write_sums(&folder, &right_sums());
    write_json(&folder, 5, &digest(b"other"));
    let error = check(&folder).unwrap_err();
    assert!(
        error.starts_with("/manifest.json: file a.safetensors: "),
        "{error}"
    );
}

#[test]
fn missing_and_unlisted_files_are_named() {
    let folder = folder();
    let mut sums = right_sums();
    sums.push(format!("{}  c.safetensors", digest(b"third")));
    write_sums(&folder, &sums);
    let missing = check(&folder).unwrap_err();
    assert!(
        missing.starts_with("/SHA256SUMS: file c.safetensors: expected the file"),
        "{missing}"
    );
    write_sums(&folder, &right_sums()[1..]);
    assert_eq!(
        check(&folder).unwrap_err(),
        "/SHA256SUMS: file a.safetensors: expected no weights but those listed, found a file that is not listed"
    );
    let lenient = verify(folder.path(), Verification::WherePossible);
    assert!(
        lenient.is_err(),
        "a manifest that leaves a file out does not hold"
    );
}

#[test]
fn manifests_that_cannot_be_read_are_errors() {
    let folder = folder();
    let sums = |line: String| {
        write_sums(&folder, &[line]);
        check(&folder).unwrap_err()
    };
    let digest = digest(b"first");
    assert_eq!(
        sums(format!("{digest} a.safetensors")),
        ": line 1 is not a SHA-256 digest, two spaces and a file name"
            .replace(": l", "/SHA256SUMS: l")
    );
    assert!(sums(format!("{}  a", &digest[1..])).contains("line 1"));
    assert!(sums(format!("é{}  a", &digest[2..])).contains("line 1"));
    assert_eq!(
        sums(format!("{digest}  ../a.safetensors")),
        "/SHA256SUMS: ../a.safetensors is not a plain file name"
    );
    write_sums(&folder, &[right_sums(), right_sums()].concat());
    assert_eq!(
        check(&folder).unwrap_err(),
        "/SHA256SUMS: a.safetensors is listed twice"
    );
    std::fs::remove_file(folder.path().join(SUMS)).unwrap();
    write_json(&folder, 5, "short");
    assert!(
        check(&folder)
            .unwrap_err()
            .contains("\"short\" of a.safetensors")
    );
    std::fs::write(folder.path().join(JSON), "{}").unwrap();
    assert!(
        check(&folder)
            .unwrap_err()
            .contains("missing field `files`")
    );
}
