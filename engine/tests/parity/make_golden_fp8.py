"""Makes fp8/: a model whose weights are e4m3 in blocks, and what `transformers` answers for it.

    python make_golden_fp8.py                   (torch 2.15.0, transformers 5.23.0, accelerate 1.15.0)

The checkpoint is as the FP8 releases of Qwen3 are: `weight` of float8_e4m3fn and `weight_scale_inv` of f32, one for each
block of 128 x 128. Queries and their projection back have two blocks each way, so a scale that is taken from another block,
or scales that are turned around, show. No matrix ends within a block: `transformers` dequantises such a one in blocks of
equal size, which is not how it was quantised. torch rounds the weights and writes the file.

The reference is `transformers`, which dequantises at load, in f32 and with f32 activations. That is compared here with the
same model whose weights were widened by their definition, weight times scale.
"""

import json
import pathlib
import tempfile

import safetensors.torch
import torch
import transformers

BLOCK = 128
LARGEST = 448.0
PROMPTS = [[3], [5, 60, 17, 17, 2], [(7 * i * i + 3 * i + 1) % 64 for i in range(40)]]

CONFIG = {
    "architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "vocab_size": 64, "hidden_size": 256,
    "intermediate_size": 128, "num_hidden_layers": 1, "num_attention_heads": 4, "num_key_value_heads": 1, "head_dim": 64,
    "max_position_embeddings": 128, "rms_norm_eps": 1e-6, "rope_theta": 10000.0, "hidden_act": "silu",
    "tie_word_embeddings": True, "attention_bias": False, "torch_dtype": "bfloat16", "bos_token_id": None,
    "eos_token_id": None,
}
QUANTIZATION = {
    "quant_method": "fp8", "fmt": "e4m3", "activation_scheme": "dynamic", "weight_block_size": [BLOCK, BLOCK],
    "modules_to_not_convert": ["lm_head"],
}
MATRICES = {
    "self_attn.q_proj": (256, 256), "self_attn.k_proj": (64, 256), "self_attn.v_proj": (64, 256),
    "self_attn.o_proj": (256, 256), "mlp.gate_proj": (128, 256), "mlp.up_proj": (128, 256), "mlp.down_proj": (256, 128),
}
NORMS = {
    "input_layernorm": 256, "post_attention_layernorm": 256, "self_attn.q_norm": 64, "self_attn.k_norm": 64,
}


def quantise(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The weight in e4m3, and the scale of each block."""
    down, across = (-(-size // BLOCK) for size in weight.shape)
    scales = torch.empty(down, across)
    narrow = torch.empty_like(weight, dtype=torch.float8_e4m3fn)
    for row in range(down):
        for column in range(across):
            block = slice(row * BLOCK, (row + 1) * BLOCK), slice(column * BLOCK, (column + 1) * BLOCK)
            scales[row, column] = weight[block].abs().max() / LARGEST
            narrow[block] = (weight[block] / scales[row, column]).to(torch.float8_e4m3fn)
    return narrow, scales


def widen(narrow: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    scales = scales.repeat_interleave(BLOCK, 0).repeat_interleave(BLOCK, 1)
    return narrow.float() * scales[: narrow.shape[0], : narrow.shape[1]]


def tensors() -> tuple[dict, dict]:
    """Those of the checkpoint, and those of the same model in f32."""
    random = torch.Generator().manual_seed(5)
    draw = lambda *shape: torch.rand(*shape, generator=random) * 2 - 1
    embedding = draw(CONFIG["vocab_size"], CONFIG["hidden_size"]).bfloat16()
    narrow = {"model.embed_tokens.weight": embedding, "model.norm.weight": (1 + 0.4 * draw(256)).bfloat16()}
    for name, width in NORMS.items():
        narrow[f"model.layers.0.{name}.weight"] = (1 + 0.4 * draw(width)).bfloat16()
    wide = {name: tensor.float() for name, tensor in narrow.items()}
    for name, (rows, columns) in MATRICES.items():
        # Blocks of different sizes, so that each needs its own scale.
        sizes = 0.5 + 3 * torch.rand(-(-rows // BLOCK), -(-columns // BLOCK), generator=random)
        sizes = sizes.repeat_interleave(BLOCK, 0).repeat_interleave(BLOCK, 1)[:rows, :columns]
        weight, scales = quantise(draw(rows, columns) * sizes * columns**-0.5)
        name = f"model.layers.0.{name}.weight"
        narrow |= {name: weight, f"{name}_scale_inv": scales}
        wide[name] = widen(weight, scales)
    return narrow, wide


def write(folder: pathlib.Path, config: dict, state: dict) -> None:
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config, indent=1) + "\n")
    safetensors.torch.save_file(state, folder / "model.safetensors", metadata={"format": "pt"})


@torch.no_grad()
def answers(folder: pathlib.Path, **options) -> list[torch.Tensor]:
    model = transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager", **options
    ).float().eval()
    return [model(torch.tensor([ids])).logits[0, -1].double() for ids in PROMPTS]


def main() -> None:
    torch.set_num_threads(1)
    folder = pathlib.Path(__file__).with_name("fp8")
    narrow, wide = tensors()
    write(folder, CONFIG | {"quantization_config": QUANTIZATION}, narrow)
    dequantised = answers(folder, quantization_config=transformers.FineGrainedFP8Config(dequantize=True))
    with tempfile.TemporaryDirectory() as other:
        write(pathlib.Path(other), CONFIG, wide)
        by_definition = answers(pathlib.Path(other))
    for one, other in zip(dequantised, by_definition):
        print("largest logit", float(one.abs().max()), "difference", float((one - other).abs().max()))
    golden = {
        "made_with": {"torch": torch.__version__, "transformers": transformers.__version__},
        "answers": [
            {"prompt": ids, "logits": [float(f"{value:.7g}") for value in (row - row.mean()).tolist()]}
            for ids, row in zip(PROMPTS, by_definition)
        ],
    }
    (folder / "golden.json").write_text(json.dumps(golden, separators=(",", ":")) + "\n")


if __name__ == "__main__":
    main()
