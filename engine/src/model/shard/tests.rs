//! Parts of all ranks put together are the whole, whatever the families call and stack their tensors.

use super::*;
use crate::model::{ElementType, Fp8Config};

fn config(heads: usize, kv_heads: usize, inner: usize) -> ModelConfig {
    ModelConfig {
        vocab_size: 10,
        hidden_size: 8,
        intermediate_size: inner,
        layers: 1,
        heads,
        kv_heads,
        head_dim: 2,
        ..ModelConfig::default()
    }
}

/// The bytes of a bf16 matrix each of whose elements says where it is: row * 100 + column.
fn numbered(rows: usize, columns: usize) -> Vec<u8> {
    let at = (0..rows).flat_map(|row| (0..columns).map(move |column| (row * 100 + column) as u16));
    at.flat_map(u16::to_le_bytes).collect()
}

fn tensor<'a>(bytes: &'a [u8], shape: &'a [usize]) -> Tensor<'a> {
    Tensor {
        element: ElementType::Bf16,
        shape,
        bytes,
        scales: None,
    }
}

/// The numbers of the elements, row by row, of parts that lie one below the other.
fn numbers(parts: &[Tensor<'_>]) -> Vec<Vec<u16>> {
    let rows = parts.iter().flat_map(|part| {
        let width = part.shape[1] * 2;
        part.bytes.chunks(width).map(|row| {
            let numbers = row
                .chunks(2)
                .map(|pair| u16::from_le_bytes([pair[0], pair[1]]));
            numbers.collect()
        })
    });
    rows.collect()
}

#[test]
fn heads_and_inner_elements_are_dealt_out() {
    let config = config(4, 2, 6);
    // One tensor for all, as some families have them: 8 rows of queries, 4 of keys, 4 of values.
    let (qkv, o, gate_up, down) = (
        numbered(16, 8),
        numbered(8, 8),
        numbered(12, 8),
        numbered(8, 6),
    );
    let (norm, shapes) = (numbered(1, 8), [[16, 8], [8, 8], [12, 8], [8, 6]]);
    let layer = Layer {
        input_norm: tensor(&norm, &[8]),
        qkv: vec![tensor(&qkv, &shapes[0])],
        qkv_bias: Vec::new(),
        qk_norms: None,
        o: tensor(&o, &shapes[1]),
        post_norm: tensor(&norm, &[8]),
        feed_forward: FeedForward::Dense(Mlp {
            gate_up: vec![tensor(&gate_up, &shapes[2])],
            down: tensor(&down, &shapes[3]),
        }),
    };
    let shard = Shard::new(1, 2, &config).unwrap();
    let part = shard.layer(&layer, &config);
    let view = part.view();
    let firsts =
        |rows: Vec<Vec<u16>>| -> Vec<u16> { rows.iter().map(|row| row[0] / 100).collect() };
    assert_eq!(firsts(numbers(&view.qkv)), [4, 5, 6, 7, 10, 11, 14, 15]);
    assert_eq!(numbers(&[view.o])[3], [304, 305, 306, 307]);
    let FeedForward::Dense(mlp) = &view.feed_forward else {
        panic!("a dense layer stays one");
    };
    assert_eq!(firsts(numbers(&mlp.gate_up)), [3, 4, 5, 9, 10, 11]);
    assert_eq!(numbers(&[mlp.down])[7], [703, 704, 705]);
    let own = shard.config(&config);
    assert_eq!((own.heads, own.kv_heads, own.intermediate_size), (2, 1, 3));
}

#[test]
fn one_rank_has_everything_where_it_lies() {
    let bytes = numbered(10, 8);
    let whole = tensor(&bytes, &[10, 8]);
    let part = Part::columns(&whole, 0..8);
    assert!(matches!(part.bytes, Cow::Borrowed(_)));
    let head = Shard::WHOLE.head(&whole, &config(4, 2, 6));
    assert_eq!(head.view().bytes.as_ptr(), bytes.as_ptr());
}

#[test]
fn the_vocabulary_is_dealt_out_without_gaps() {
    let config = config(8, 8, 8);
    for ranks in [1, 2, 4, 8] {
        let shard = Shard::new(0, ranks, &config).unwrap();
        let parts = (0..ranks).map(|rank| shard.vocabulary_of(rank, &config));
        let tokens: Vec<usize> = parts.flatten().collect();
        assert_eq!(tokens, (0..10).collect::<Vec<_>>());
    }
}

#[test]
fn more_ranks_than_key_value_heads_share_them() {
    let config = config(8, 2, 8);
    let heads = |rank| Shard::new(rank, 4, &config).unwrap().kv_heads(&config);
    assert_eq!([0, 1, 2, 3].map(heads), [0..1, 0..1, 1..2, 1..2]);
}

#[test]
fn what_cannot_be_dealt_out_is_refused() {
    let refused = |rank, ranks, config: &ModelConfig| Shard::new(rank, ranks, config).is_err();
    assert!(refused(0, 3, &config(4, 2, 6)));
    assert!(refused(0, 4, &config(12, 3, 8)));
    assert!(refused(0, 4, &config(4, 2, 6)));
    assert!(refused(2, 2, &config(4, 2, 6)));
    assert!(!refused(1, 2, &config(4, 2, 6)));
}

/// A matrix of e4m3, as it is worth.
fn narrow<'a>(
    bytes: &'a [u8],
    shape: &'a [usize; 2],
    grain: Grain,
    scales: &'a [u8],
) -> Tensor<'a> {
    Tensor {
        element: ElementType::E4m3,
        shape,
        bytes,
        scales: Some(Scales {
            grain,
            element: ElementType::F32,
            shape: grain.shape(*shape),
            bytes: scales,
        }),
    }
}

#[test]
fn scales_are_cut_with_their_weights() {
    let shape = [256, 300];
    let bytes: Vec<u8> = (0..256 * 300).map(|index| (index % 0x7f) as u8).collect();
    for grain in [Grain::Tensor, Grain::Row, Grain::Block] {
        let [down, across] = grain.shape(shape);
        let scales: Vec<u8> = (0..down * across)
            .flat_map(|index| (1.5 + index as f32).to_le_bytes())
            .collect();
        let whole = narrow(&bytes, &shape, grain, &scales);
        let values = whole.to_vec();
        let of = |row: usize, column: usize| values[row * 300 + column];
        let rows = Part::rows(&whole, 128..200);
        let expected = (128..200).flat_map(|row| (0..300).map(move |column| (row, column)));
        let expected: Vec<f32> = expected.map(|(row, column)| of(row, column)).collect();
        assert_eq!(rows.view().to_vec(), expected, "{grain:?}");
        let columns = Part::columns(&whole, 128..256);
        let expected = (0..256).flat_map(|row| (128..256).map(move |column| (row, column)));
        let expected: Vec<f32> = expected.map(|(row, column)| of(row, column)).collect();
        assert_eq!(columns.view().to_vec(), expected, "{grain:?}");
        let last = Part::columns(&whole, 256..300);
        assert_eq!(last.view().get(44), Some(of(1, 256)), "{grain:?}");
    }
}

#[test]
fn blocks_of_scales_are_not_cut() {
    let blocks = |heads, kv_heads, inner| ModelConfig {
        head_dim: 64,
        quantization: Some(Fp8Config {
            grain: Grain::Block,
            ..Fp8Config::default()
        }),
        ..config(heads, kv_heads, inner)
    };
    let refused = |ranks, config: &ModelConfig| {
        Shard::new(0, ranks, config).map_err(|error| error.to_string())
    };
    refused(2, &blocks(4, 4, 512)).unwrap();
    refused(1, &blocks(1, 1, 100)).unwrap();
    let error = |ranks, config: &ModelConfig| refused(ranks, config).unwrap_err();
    let text = |ranks, what| {
        format!(
            "the model cannot be shared by {ranks} ranks: a rank would have {what}, and scales are of blocks of 128 \
             weights"
        )
    };
    assert_eq!(error(4, &blocks(4, 4, 512)), text(4, "64 rows of queries"));
    assert_eq!(error(2, &blocks(4, 2, 512)), text(2, "64 rows of keys"));
    assert_eq!(error(2, &blocks(4, 4, 384)), text(2, "192 inner elements"));
    let mut rows = blocks(4, 2, 384);
    if let Some(fp8) = &mut rows.quantization {
        fp8.grain = Grain::Row;
    }
    refused(2, &rows).unwrap();
}
