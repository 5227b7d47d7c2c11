"""Model folders with random weights, as Hugging Face lays them out: speed and agreement do not depend on what weights say.

Weights are normal with a deviation that keeps the residual stream in range, from a fixed seed, made on the device where there
is one. The FP8 folder holds the same weights, rounded to e4m3 with a scale for each block of 128 by 128.
"""

import json
import pathlib
import shutil

import torch
from safetensors.torch import save_file

LLAMA_8B = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "vocab_size": 128256,
    "max_position_embeddings": 16384,
    "rms_norm_eps": 1e-5,
    "rope_theta": 500000.0,
    "tie_word_embeddings": False,
    "hidden_act": "silu",
    "torch_dtype": "bfloat16",
    "bos_token_id": 0,
    "eos_token_id": 1,
}
QWEN3 = {
    **LLAMA_8B,
    "model_type": "qwen3",
    "architectures": ["Qwen3ForCausalLM"],
    "intermediate_size": 12288,
    "vocab_size": 151936,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1000000.0,
}
# What a rehearsal on a CPU takes: the same in small.
SMALL = {"hidden_size": 256, "intermediate_size": 512, "num_attention_heads": 8, "num_key_value_heads": 2, "head_dim": 32,
         "vocab_size": 1024, "num_hidden_layers": 2}
FP8_BLOCK = 128


def shapes(config):
    """Names and shapes of a layer's matrices and norms, in their order; then those of the others."""
    hidden, inner, dim = config["hidden_size"], config["intermediate_size"], config["head_dim"]
    heads, kv_heads = config["num_attention_heads"] * dim, config["num_key_value_heads"] * dim
    layer = {
        "self_attn.q_proj": (heads, hidden),
        "self_attn.k_proj": (kv_heads, hidden),
        "self_attn.v_proj": (kv_heads, hidden),
        "self_attn.o_proj": (hidden, heads),
        "mlp.gate_proj": (inner, hidden),
        "mlp.up_proj": (inner, hidden),
        "mlp.down_proj": (hidden, inner),
        "input_layernorm": (hidden,),
        "post_attention_layernorm": (hidden,),
    }
    if config["model_type"] == "qwen3":
        layer |= {"self_attn.q_norm": (dim,), "self_attn.k_norm": (dim,)}
    others = {"model.embed_tokens": (config["vocab_size"], hidden), "model.norm": (hidden,)}
    if not config["tie_word_embeddings"]:
        others["lm_head"] = (config["vocab_size"], hidden)
    return layer, others


def weight(shape, generator):
    if len(shape) == 1:
        return 1 + 0.1 * torch.randn(shape, generator=generator, device=generator.device)
    return torch.randn(shape, generator=generator, device=generator.device) * shape[1] ** -0.5


def blocks_of_e4m3(values):
    """Rounded values and what they are multiplied with, [ceil(n / 128), ceil(k / 128)]."""
    n, k = values.shape
    pad = torch.nn.functional.pad(values.float(), (0, -k % FP8_BLOCK, 0, -n % FP8_BLOCK))
    blocks = pad.view(pad.shape[0] // FP8_BLOCK, FP8_BLOCK, pad.shape[1] // FP8_BLOCK, FP8_BLOCK)
    scales = blocks.abs().amax(dim=(1, 3)).clamp(min=1e-8) / 448.0
    rounded = (blocks / scales[:, None, :, None]).view(pad.shape)[:n, :k].to(torch.float8_e4m3fn)
    return rounded.contiguous(), scales


def write(folder, config, tokenizer_from, fp8=False, seed=7):
    """Writes a folder, a file for each layer; whatever is there already is written over."""
    folder = pathlib.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    config = dict(config)
    if fp8:
        config["quantization_config"] = {
            "quant_method": "fp8", "fmt": "e4m3", "activation_scheme": "dynamic", "weight_block_size": [FP8_BLOCK, FP8_BLOCK],
        }
    (folder / "config.json").write_text(json.dumps(config, indent=1))
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(pathlib.Path(tokenizer_from) / name, folder / name)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    generator = torch.Generator(device=device).manual_seed(seed)
    layer, others = shapes(config)
    parts = [{f"model.layers.{index}.{name}": shape for name, shape in layer.items()} for index in range(config["num_hidden_layers"])]
    files = {}
    for number, part in enumerate([others, *parts]):
        tensors = {}
        for name, shape in part.items():
            values = weight(shape, generator)
            if fp8 and name.endswith("_proj"):
                tensors[name + ".weight"], tensors[name + ".weight_scale_inv"] = (tensor.cpu() for tensor in blocks_of_e4m3(values))
            else:
                tensors[name + ".weight"] = values.to(torch.bfloat16).cpu()
        file = f"model-{number:05}-of-{len(parts) + 1:05}.safetensors"
        save_file(tensors, folder / file, metadata={"format": "pt"})
        files |= dict.fromkeys(tensors, file)
    index = {"metadata": {}, "weight_map": files}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


def work(config, fp8=False):
    """What a step has to read of weights, in bytes, and to do for each token with them, in operations; bytes of a token's
    keys and values; and operations of attention for each pair of tokens."""
    layer, others = shapes(config)
    count = lambda group: sum(a * b for a, b in (shape for shape in group.values() if len(shape) == 2))
    matrices = config["num_hidden_layers"] * count(layer)
    head = config["vocab_size"] * config["hidden_size"]
    # An e4m3 weight and its part of a scale.
    each = 1 + 4 / FP8_BLOCK**2 if fp8 else 2
    return {
        "weight_bytes": matrices * each + 2 * head,
        "operations": 2 * (matrices + head),
        "matrix_operations": 2 * matrices,
        "kv_bytes": 2 * 2 * config["num_hidden_layers"] * config["num_key_value_heads"] * config["head_dim"],
        "pair_operations": 4 * config["num_hidden_layers"] * config["num_attention_heads"] * config["head_dim"],
    }
