//! What an e4m3 is worth, checkpoints of every form, and what is said about those that are not right.

use safetensors::tensor::Dtype;
use serde_json::{Value, json};

use super::checkpoints::{
    Checkpoints, FORMS, Form, Written, nearest, read, small, small_config, write,
};
use super::{Grain, e4m3};
use crate::model::{ElementType, FeedForward, Model};

/// The value by the format's definition.
fn by_definition(bits: u8) -> f64 {
    let (exponent, fraction) = (i32::from(bits >> 3 & 15), f64::from(bits & 7));
    let size = match exponent {
        0 => fraction / 8.0 * 2_f64.powi(-6),
        _ => (1.0 + fraction / 8.0) * 2_f64.powi(exponent - 7),
    };
    if bits & 0x80 != 0 { -size } else { size }
}

#[test]
fn each_e4m3_is_what_the_format_says() {
    for bits in 0..=255_u8 {
        let value = e4m3(bits);
        if bits & 0x7f == 0x7f {
            assert!(value.is_nan(), "{bits:#x}");
        } else {
            assert_eq!(
                f64::from(value).to_bits(),
                by_definition(bits).to_bits(),
                "{bits:#x}"
            );
            assert_eq!(nearest(value) & 0x7f, bits & 0x7f);
        }
    }
    let bits = [0x7e, 0x01, 0xb8].map(|bits| e4m3(bits).to_bits());
    assert_eq!(bits, [448.0_f32, 0.001_953_125, -1.0].map(f32::to_bits));
}

/// The model's matrices, part by part.
fn parts(model: &Model) -> Vec<(ElementType, Vec<f32>)> {
    let tensors = model.tensors().unwrap();
    let layers = tensors.layers.iter().flat_map(|layer| {
        let FeedForward::Dense(mlp) = &layer.feed_forward else {
            panic!("a dense model");
        };
        let parts = [&layer.qkv[..], &[layer.o], &mlp.gate_up, &[mlp.down]].concat();
        parts.into_iter().map(|part| (part.element, part.to_vec()))
    });
    layers.collect()
}

#[test]
fn every_form_is_read_to_the_bit() {
    let folder = small();
    for form in FORMS {
        let [narrow, wide] = Checkpoints::of(folder.path(), form).open();
        let (narrow, wide) = (parts(&narrow), parts(&wide));
        let narrow_parts = narrow.iter().filter(|part| part.0 == ElementType::E4m3);
        assert_eq!((narrow_parts.count(), wide.len()), (12, 14), "{form:?}");
        for (narrow, wide) in narrow.iter().zip(&wide) {
            assert_eq!(narrow.1, wide.1, "{form:?}");
        }
    }
}

/// The error of a folder that differs from a good one by what `change` does.
fn error(form: Form, change: impl Fn(&mut Value, &mut Vec<Written>)) -> String {
    let source = small();
    let good = Checkpoints::of(source.path(), form).narrow;
    let (mut config, mut tensors) = (small_config(), read(good.path()));
    config["quantization_config"] = form.config();
    change(&mut config, &mut tensors);
    let folder = write(&config, &tensors);
    let text = Model::open(folder.path()).unwrap_err().to_string();
    let within = text.strip_prefix(&format!("{}/", folder.path().display()));
    within
        .unwrap_or_else(|| panic!("{text} names no file"))
        .to_owned()
}

fn named<'a>(tensors: &'a mut [Written], name: &str) -> &'a mut Written {
    let name = format!("model.layers.0.{name}");
    let mut tensors = tensors.iter_mut();
    tensors.find(|tensor| tensor.name == name).unwrap()
}

#[test]
fn tensors_that_do_not_fit_are_named() {
    let of = |name: &str, reason: &str| {
        format!("model.safetensors: tensor model.layers.0.{name}: {reason}")
    };
    let rows = Form::Compressed(Grain::Row);
    let renamed = |name: &'static str| {
        move |_: &mut Value, tensors: &mut Vec<Written>| {
            "other".clone_into(&mut named(tensors, name).name);
        }
    };
    let name = "mlp.up_proj.weight_scale_inv";
    assert_eq!(error(Form::Blocks, renamed(name)), of(name, "is missing"));
    let name = "mlp.up_proj.weight_scale";
    assert_eq!(error(Form::Tensor, renamed(name)), of(name, "is missing"));
    // As long as it should be, the other way round.
    let turned = error(rows, |_, tensors| named(tensors, name).shape = vec![1, 152]);
    assert_eq!(
        turned,
        of(name, "has shape [1, 152]; the configuration says [152, 1]")
    );
    let down = "mlp.down_proj.weight_scale_inv";
    let turned = error(Form::Blocks, |_, tensors| {
        named(tensors, down).shape = vec![4];
    });
    assert_eq!(
        turned,
        of(down, "has shape [4]; the configuration says [2, 2]")
    );
    let integers = error(Form::Tensor, |_, tensors| {
        named(tensors, name).dtype = Dtype::I32;
    });
    assert_eq!(integers, of(name, "has elements of type I32"));
    let endless = error(Form::Tensor, |_, tensors| {
        named(tensors, name).bytes = f32::INFINITY.to_le_bytes().to_vec();
    });
    assert_eq!(endless, of(name, "has a scale of inf"));
    let other = error(Form::Tensor, |_, tensors| {
        named(tensors, "mlp.up_proj.weight").dtype = Dtype::F8_E5M2;
    });
    assert_eq!(
        other,
        of("mlp.up_proj.weight", "has elements of type F8_E5M2")
    );
    // What is no matrix of a layer stays wide.
    let embedding = error(Form::Tensor, |_, tensors| {
        let tensor = tensors
            .iter_mut()
            .find(|tensor| tensor.name == "model.embed_tokens.weight");
        let tensor = tensor.unwrap();
        tensor.dtype = Dtype::F8_E4M3;
        tensor.bytes.truncate(10 * 136);
    });
    assert!(
        embedding.contains("model.embed_tokens.weight: has elements of type F8_E4M3"),
        "{embedding}"
    );
}

#[test]
fn tensors_and_configuration_must_agree_on_what_is_narrow() {
    let weight = "model.safetensors: tensor model.layers.0.self_attn.q_proj.weight: has elements of type F8_E4M3, and \
                  the configuration";
    let none = error(Form::Blocks, |config, _| {
        config["quantization_config"] = Value::Null;
    });
    assert_eq!(none, format!("{weight} has no quantization_config"));
    let listed = format!("{weight} lists its module among those that are not quantised");
    for (form, field, name) in [
        (
            Form::Blocks,
            "modules_to_not_convert",
            "model.layers.0.self_attn.q_proj",
        ),
        (Form::Tensor, "ignored_layers", "q_proj"),
        (Form::Compressed(Grain::Row), "ignore", "re:.*q_pro"),
        (Form::Compressed(Grain::Row), "ignore", "self_attn.q_proj"),
    ] {
        let found = error(form, |config, _| {
            config["quantization_config"][field] = json!([name]);
        });
        assert_eq!(found, listed, "{name}");
    }
    // Names that only look alike.
    let source = small();
    for name in ["_proj", "attn.q_proj", "re:q_proj", "model.layers.0"] {
        let good = Checkpoints::of(source.path(), Form::Compressed(Grain::Row)).narrow;
        let mut config = small_config();
        config["quantization_config"] = Form::Compressed(Grain::Row).config();
        config["quantization_config"]["ignore"] = json!([name]);
        std::fs::write(good.path().join("config.json"), config.to_string()).unwrap();
        Model::open(good.path()).unwrap();
    }
}

/// Places in `quantization_config`, what is written there, and what is said about it.
const FP8_FIELDS: [[&str; 3]; 7] = [
    [
        "/quant_method",
        r#""gptq""#,
        r#"is "gptq"; supported: "fp8", "compressed-tensors""#,
    ],
    [
        "/weight_block_size",
        "[64,64]",
        "is [64,64]; supported: null, [128,128]",
    ],
    ["/fmt", r#""e5m2""#, r#"is "e5m2"; supported: null, "e4m3""#],
    [
        "/activation_scheme",
        "3",
        r#"is 3; supported: null, "dynamic", "static""#,
    ],
    [
        "/kv_cache_scheme",
        r#""static""#,
        r#"is "static"; supported: null"#,
    ],
    [
        "/ignored_layers",
        "[1]",
        "is [1]; supported: a list of module names",
    ],
    [
        "/something_new",
        r#"{"a":1}"#,
        r#"is {"a":1}; supported: null"#,
    ],
];

const COMPRESSED_FIELDS: [[&str; 3]; 9] = [
    [
        "/format",
        r#""pack-quantized""#,
        r#"is "pack-quantized"; supported: "float-quantized""#,
    ],
    [
        "/kv_cache_scheme",
        r#"{"num_bits":8}"#,
        r#"is {"num_bits":8}; supported: null"#,
    ],
    [
        "/sparsity_config",
        r#"{"format":"bitmask"}"#,
        r#"is {"format":"bitmask"}; supported: none, or of format dense"#,
    ],
    [
        "/config_groups",
        "{}",
        "is {}; supported: at least one group",
    ],
    [
        "/config_groups/group_0/weights",
        "null",
        "is null, and no object",
    ],
    [
        "/config_groups/group_0/weights/num_bits",
        "4",
        "is 4; supported: 8",
    ],
    [
        "/config_groups/group_0/weights/type",
        r#""int""#,
        r#"is "int"; supported: "float""#,
    ],
    [
        "/config_groups/group_0/weights/strategy",
        r#""group""#,
        r#"is "group"; supported: "tensor", "channel", "block""#,
    ],
    [
        "/config_groups/group_0/weights/group_size",
        "64",
        "is 64; supported: null",
    ],
];

#[test]
fn what_is_not_supported_is_named() {
    let of_fp8 = FP8_FIELDS.map(|fields| (Form::Blocks, fields));
    let rows = Form::Compressed(Grain::Row);
    let compressed = COMPRESSED_FIELDS.map(|fields| (rows, fields));
    for (form, [pointer, value, expected]) in of_fp8.into_iter().chain(compressed) {
        let found = error(form, |config, _| {
            let fields = &mut config["quantization_config"];
            let value = serde_json::from_str(value).unwrap();
            match fields.pointer_mut(pointer) {
                Some(field) => *field = value,
                None => fields[&pointer[1..]] = value,
            }
        });
        let path = pointer[1..].replace('/', ".");
        assert_eq!(
            found,
            format!("config.json: field quantization_config: {path} {expected}")
        );
    }
}

#[test]
fn what_is_no_configuration_is_named() {
    let rows = Form::Compressed(Grain::Row);
    let found = error(rows, |config, _| {
        config["quantization_config"]["ignore"] = json!(["re:("]);
    });
    assert!(
        found.starts_with("config.json: field quantization_config: ignore: regex parse error"),
        "{found}"
    );
    let found = error(rows, |config, _| config["quantization_config"] = json!(8));
    assert_eq!(
        found,
        "config.json: field quantization_config: is 8, and no object"
    );
    let found = error(rows, |config, _| {
        let mut other = config["quantization_config"]["config_groups"]["group_0"].clone();
        other["weights"]["strategy"] = json!("tensor");
        config["quantization_config"]["config_groups"]["group_1"] = other;
    });
    assert!(
        found.ends_with("; supported: groups of one strategy"),
        "{found}"
    );
    assert!(found.len() < 300, "a long value is cut: {found}");
}

#[test]
fn a_configuration_of_nulls_is_none() {
    let mut config = small_config();
    config["quantization_config"] = Value::Null;
    let folder = write(&config, &read(small().path()));
    assert_eq!(
        Model::open(folder.path()).unwrap().config.quantization,
        None
    );
}
