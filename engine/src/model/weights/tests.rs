//! Weights of one file and of shards, and every way in which they can be damaged.

use std::collections::HashMap;
use std::path::Path;

use safetensors::tensor::TensorView;

use super::*;

fn write(path: &Path, tensors: &[(&str, Dtype, Vec<usize>, Vec<u8>)]) {
    let views = tensors.iter().map(|(name, dtype, shape, bytes)| {
        (
            (*name).to_owned(),
            TensorView::new(*dtype, shape.clone(), bytes).unwrap(),
        )
    });
    let bytes = safetensors::serialize(views, None::<HashMap<String, String>>).unwrap();
    std::fs::write(path, bytes).unwrap();
}

fn pair() -> (&'static str, Dtype, Vec<usize>, Vec<u8>) {
    (
        "pair",
        Dtype::F32,
        vec![1, 2],
        [1.5_f32, -2.0].map(f32::to_le_bytes).concat(),
    )
}

fn single() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let half = [half::f16::from_f32(0.5)]
        .map(half::f16::to_le_bytes)
        .concat();
    let brain = [half::bf16::from_f32(3.0)]
        .map(half::bf16::to_le_bytes)
        .concat();
    let tensors = [
        pair(),
        ("half", Dtype::F16, vec![1], half),
        ("brain", Dtype::BF16, vec![1], brain),
        ("bytes", Dtype::U8, vec![3], vec![1, 2, 3]),
    ];
    write(&folder.path().join("model.safetensors"), &tensors);
    folder
}

#[test]
fn tensors_of_all_types_are_read() {
    let folder = single();
    let weights = Weights::open(folder.path()).unwrap();
    assert_eq!(
        weights.tensor("pair", &[1, 2]).unwrap().to_vec(),
        [1.5, -2.0]
    );
    assert_eq!(weights.tensor("half", &[1]).unwrap().to_vec(), [0.5]);
    assert_eq!(weights.tensor("brain", &[1]).unwrap().to_vec(), [3.0]);
    assert!(weights.contains("pair") && !weights.contains("other"));
}

#[test]
fn a_stack_is_taken_apart() {
    let folder = tempfile::tempdir().unwrap();
    let bytes: Vec<u8> = (0..12_u8)
        .flat_map(|i| f32::from(i).to_le_bytes())
        .collect();
    let stack = ("stack", Dtype::F32, vec![3, 2, 2], bytes);
    write(&folder.path().join("model.safetensors"), &[stack]);
    let weights = Weights::open(folder.path()).unwrap();
    let parts: Vec<_> = weights
        .tensor("stack", &[3, 2, 2])
        .unwrap()
        .parts()
        .collect();
    assert_eq!(parts.len(), 3);
    assert_eq!(parts[1].shape, [2, 2]);
    assert_eq!(parts[1].to_vec(), [4.0, 5.0, 6.0, 7.0]);
}

#[test]
fn errors_name_file_and_tensor() {
    let folder = single();
    let weights = Weights::open(folder.path()).unwrap();
    let error = |name, shape: &[usize]| {
        let text = weights.tensor(name, shape).unwrap_err().to_string();
        let (path, rest) = text.split_once(": ").unwrap();
        assert!(path.ends_with("model.safetensors"), "{text}");
        rest.to_owned()
    };
    assert_eq!(error("other", &[1]), "tensor other: is missing");
    assert_eq!(
        error("pair", &[2, 1]),
        "tensor pair: has shape [1, 2]; the configuration says [2, 1]"
    );
    assert_eq!(
        error("bytes", &[3]),
        "tensor bytes: has elements of type U8"
    );
}

#[test]
fn truncated_and_missing_files_are_named() {
    let folder = single();
    let path = folder.path().join("model.safetensors");
    let whole = std::fs::read(&path).unwrap();
    for length in [0, 4, 8, 60, whole.len() - 1] {
        std::fs::write(&path, &whole[..length]).unwrap();
        let text = Weights::open(folder.path()).unwrap_err().to_string();
        assert!(text.contains("model.safetensors: "), "{text}");
    }
    std::fs::remove_file(&path).unwrap();
    assert!(matches!(
        Weights::open(folder.path()),
        Err(ModelError::Read { .. })
    ));
}

#[test]
fn shards_are_found_through_the_index() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    write(&at("a.safetensors"), &[pair()]);
    write(
        &at("b.safetensors"),
        &[("one", Dtype::F32, vec![1], 7.0_f32.to_le_bytes().to_vec())],
    );
    let index = |text: &str| std::fs::write(at("model.safetensors.index.json"), text).unwrap();
    index(
        r#"{"metadata": {"total_size": 12},
            "weight_map": {"pair": "a.safetensors", "one": "b.safetensors", "gone": "a.safetensors"}}"#,
    );
    let weights = Weights::open(folder.path()).unwrap();
    assert_eq!(weights.tensor("one", &[1]).unwrap().to_vec(), [7.0]);
    assert_eq!(
        weights.tensor("pair", &[1, 2]).unwrap().to_vec(),
        [1.5, -2.0]
    );
    let gone = weights.tensor("gone", &[1]).unwrap_err().to_string();
    assert!(
        gone.ends_with("a.safetensors: tensor gone: is missing"),
        "{gone}"
    );
    assert!(
        weights
            .tensor("unlisted", &[1])
            .unwrap_err()
            .to_string()
            .contains("unlisted")
    );
    index(r#"{"weight_map": {"pair": "../a.safetensors"}}"#);
    let outside = Weights::open(folder.path()).unwrap_err().to_string();
    assert!(
        outside.contains("../a.safetensors is not a plain file name"),
        "{outside}"
    );
    index(r#"{"weight_map": {"pair": "c.safetensors"}}"#);
    let missing = Weights::open(folder.path()).unwrap_err().to_string();
    assert!(missing.contains("c.safetensors"), "{missing}");
}
