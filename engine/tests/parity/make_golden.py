"""Makes golden.json: what `transformers` answers for small models of every family.

    python make_golden.py                       (torch 2.15.0, transformers 5.23.0, numpy 2, safetensors 0.8)

The weights are not stored. Each element is an integer hash of a seed, the tensor's name and its place, which the test
in `../parity.rs` computes alike; golden.json holds the names, shapes and scales. Here they are written into a real
model folder, under the names that published checkpoints use, and loaded by `from_pretrained`, so that what the
reference makes of a name is part of the comparison. The same `config.json` is written by the test, but for LongRoPE
(see `reference_config`).

For each family there are two models:

- `f32`: tiny, f32 weights. 20 prompts of 1 to 600 tokens; 32 greedy tokens each. Every step runs the whole sequence
  without a cache.
- `bf16`: a few million bf16 weights (enough for backends that keep small models in f32 to leave them as they are).
  Logits after three prompts. The reference computes with the weights widened to f32: a reference that computes in
  bf16 rounds after each operation, which says more about its order of operations than about the model.

Rounding must not decide anything, or equal tokens would prove nothing: a prompt is kept when the two best logits of
each of its steps are at least MARGIN standard deviations apart and, in a mixture of experts, no token's last chosen
and first rejected expert are closer than ROUTER_MARGIN; otherwise the next seed is tried. Both are far above what f32
arithmetic can be off by, and the margins found are stored.
"""

import json
import math
import pathlib
import tempfile

import numpy as np
import safetensors.torch
import torch
import transformers

VOCAB = 503
LENGTHS = [1, 2, 3, 5, 8, 13, 15, 16, 17, 24, 31, 33, 47, 64, 100, 150, 223, 310, 450, 600]
LOGIT_LENGTHS = [1, 77, 400]
NEW_TOKENS = 32
MARGIN = 5e-3
ROUTER_MARGIN = 3e-5

MASK = (1 << 64) - 1


def name_hash(seed: int, name: str) -> int:
    """FNV-1a over the seed's eight bytes and the name."""
    state = 0xCBF29CE484222325
    for byte in seed.to_bytes(8, "little") + name.encode():
        state = (state ^ byte) * 0x100000001B3 & MASK
    return state


def hashes(seed: int, name: str, count: int) -> np.ndarray:
    """SplitMix64 from the name's hash on."""
    with np.errstate(over="ignore"):
        z = np.arange(1, count + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        z += np.uint64(name_hash(seed, name))
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return z ^ (z >> np.uint64(31))


def uniform(seed: int, name: str, count: int) -> np.ndarray:
    """f32 in [-1, 1), multiples of 2^-23."""
    top = (hashes(seed, name, count) >> np.uint64(40)).astype(np.float32)
    return top / np.float32(1 << 23) - np.float32(1)


def prompt(seed: int, length: int) -> list[int]:
    return [int(h % np.uint64(VOCAB)) for h in hashes(seed, "prompt", length)]


# ---------------------------------------------------------------------------------------------------------------------
# Models

LLAMA3 = {
    "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 128,
}
LONGROPE = {
    "type": "longrope",
    "short_factor": [1.0, 1.02, 1.05, 1.1, 1.2, 1.4],
    "long_factor": [1.1, 1.3, 1.9, 3.5, 7.0, 12.0],
}

# Half of the files are as transformers 4 wrote them, half as 5 does.
FAMILIES = {
    "LlamaForCausalLM": {
        "model_type": "llama", "rope_theta": 10000.0, "rope_scaling": LLAMA3, "tie_word_embeddings": True,
        "torch_dtype": "bfloat16", "mlp_bias": False, "attention_bias": False, "pretraining_tp": 1,
    },
    "MistralForCausalLM": {
        "model_type": "mistral", "sliding_window": 24, "dtype": "bfloat16", "tie_word_embeddings": False,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
    },
    "Phi3ForCausalLM": {
        "model_type": "phi3", "rope_theta": 10000.0, "rope_scaling": LONGROPE, "tie_word_embeddings": False,
        "original_max_position_embeddings": 64, "partial_rotary_factor": 0.75, "sliding_window": None,
        "torch_dtype": "bfloat16", "attention_bias": False, "num_key_value_heads": 4, "pad_token_id": None,
    },
    "Qwen2ForCausalLM": {
        "model_type": "qwen2", "rope_theta": 1000000.0, "use_sliding_window": True, "sliding_window": 64,
        "max_window_layers": 1, "tie_word_embeddings": True, "torch_dtype": "bfloat16",
    },
    "Qwen3ForCausalLM": {
        "model_type": "qwen3", "head_dim": 24, "use_sliding_window": False, "sliding_window": None,
        "max_window_layers": 3, "tie_word_embeddings": False, "dtype": "bfloat16", "attention_bias": False,
        "rope_parameters": {"rope_type": "yarn", "rope_theta": 1000000.0, "factor": 4.0,
                            "original_max_position_embeddings": 256},
    },
    "Qwen3MoeForCausalLM": {
        "model_type": "qwen3_moe", "head_dim": 16, "num_experts": 8, "num_experts_per_tok": 3,
        "moe_intermediate_size": 48, "norm_topk_prob": True, "decoder_sparse_step": 1, "mlp_only_layers": [1],
        "use_sliding_window": False, "sliding_window": None, "tie_word_embeddings": False, "dtype": "bfloat16",
        "rope_theta": 1000000.0, "rope_scaling": None, "attention_bias": False,
    },
}


def config(architecture: str, large: bool) -> dict:
    sizes = {
        "hidden_size": 64, "intermediate_size": 112, "num_hidden_layers": 3, "num_attention_heads": 4,
        "num_key_value_heads": 2, "max_position_embeddings": 1024,
    }
    if large:
        sizes |= {"hidden_size": 256, "intermediate_size": 1536, "num_attention_heads": 16, "num_key_value_heads": 8}
    common = {
        "architectures": [architecture], "vocab_size": VOCAB, "rms_norm_eps": 1e-5, "hidden_act": "silu",
        "bos_token_id": None, "eos_token_id": None,
    }
    result = common | sizes | FAMILIES[architecture]
    if architecture == "Phi3ForCausalLM" and large:
        result["num_key_value_heads"] = 8
    if "moe_intermediate_size" in result and large:
        result["moe_intermediate_size"] = 256
    return result


def reference_config(config: dict) -> dict:
    """The reference takes LongRoPE's list by the length of each sequence, the worker by the longest context it serves,
    which is beyond the original one here. So the reference gets the long list under both names."""
    scaling = config.get("rope_scaling") or {}
    if scaling.get("type") != "longrope":
        return config
    return config | {"rope_scaling": scaling | {"short_factor": scaling["long_factor"]}}


def tensors(config: dict) -> list[tuple[str, list[int], float, float]]:
    """Name, shape, mean and half width of each tensor, as checkpoints of the family name them."""
    hidden, inner = config["hidden_size"], config["intermediate_size"]
    heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
    head_dim = config.get("head_dim", hidden // heads)
    q, kv = heads * head_dim, kv_heads * head_dim
    kind = config["model_type"]
    found = []

    def matrix(name: str, outputs: int, inputs: int, gain: float = 1.0) -> None:
        found.append((f"{name}.weight", [outputs, inputs], 0.0, gain * 1.7 / math.sqrt(inputs)))

    def norm(name: str, width: int, mean: float = 1.0) -> None:
        found.append((f"{name}.weight", [width], mean, 0.4 * mean))

    def mlp(name: str, inner: int) -> None:
        matrix(f"{name}.gate_proj", inner, hidden)
        matrix(f"{name}.up_proj", inner, hidden)
        matrix(f"{name}.down_proj", hidden, inner)

    # A tied head likes the token that it reads: small embeddings let the layers decide.
    matrix("model.embed_tokens", VOCAB, hidden, 1.0 if config["tie_word_embeddings"] else 4.0)
    norm("model.norm", hidden)
    if not config["tie_word_embeddings"]:
        matrix("lm_head", VOCAB, hidden, 4.0)
    for index in range(config["num_hidden_layers"]):
        layer = f"model.layers.{index}"
        norm(f"{layer}.input_layernorm", hidden)
        norm(f"{layer}.post_attention_layernorm", hidden)
        attention = f"{layer}.self_attn"
        # Sharper than a random model's attention would be, so that positions and windows matter.
        if kind == "phi3":
            matrix(f"{attention}.qkv_proj", q + 2 * kv, hidden, 1.5)
        else:
            matrix(f"{attention}.q_proj", q, hidden, 1.5)
            matrix(f"{attention}.k_proj", kv, hidden, 1.5)
            matrix(f"{attention}.v_proj", kv, hidden)
        if kind == "qwen2":
            for name, width in (("q", q), ("k", kv), ("v", kv)):
                found.append((f"{attention}.{name}_proj.bias", [width], 0.0, 0.7))
        if kind in ("qwen3", "qwen3_moe"):
            norm(f"{attention}.q_norm", head_dim, 1.5)
            norm(f"{attention}.k_norm", head_dim, 1.5)
        matrix(f"{attention}.o_proj", hidden, q)
        if kind == "phi3":
            matrix(f"{layer}.mlp.gate_up_proj", 2 * inner, hidden)
            matrix(f"{layer}.mlp.down_proj", hidden, inner)
        elif kind == "qwen3_moe" and index not in config["mlp_only_layers"]:
            matrix(f"{layer}.mlp.gate", config["num_experts"], hidden, 2.0)
            for expert in range(config["num_experts"]):
                mlp(f"{layer}.mlp.experts.{expert}", config["moe_intermediate_size"])
        else:
            mlp(f"{layer}.mlp", inner)
    # What both sides compute with is the f32 next to these numbers.
    return [(name, shape, float(np.float32(mean)), float(np.float32(width))) for name, shape, mean, width in found]


def load(config: dict, seed: int, bf16: bool):
    """Writes a folder and loads it; weights in f32, rounded to bf16 first if so asked."""
    state = {}
    for name, shape, mean, width in tensors(config):
        values = uniform(seed, name, math.prod(shape)) * np.float32(width) + np.float32(mean)
        tensor = torch.from_numpy(values).reshape(shape)
        state[name] = tensor.to(torch.bfloat16) if bf16 else tensor
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder)
        (path / "config.json").write_text(json.dumps(reference_config(config)))
        safetensors.torch.save_file(state, path / "model.safetensors", metadata={"format": "pt"})
        model, info = transformers.AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.float32, attn_implementation="eager", output_loading_info=True
        )
    for problem in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        assert not info[problem], (problem, info[problem])
    return model.eval()


# ---------------------------------------------------------------------------------------------------------------------
# Answers


class RouterMargin:
    """The smallest distance, in router logits, between a chosen expert and one that is not."""

    def __init__(self, model):
        self.smallest = math.inf
        for module in model.modules():
            if type(module).__name__.endswith("TopKRouter"):
                module.register_forward_hook(self.look)

    def look(self, module, _inputs, outputs):
        best = outputs[0].topk(module.top_k + 1, dim=-1).values
        self.smallest = min(self.smallest, float((best[:, -2] - best[:, -1]).min()))


@torch.no_grad()
def logits(model, ids: list[int]) -> torch.Tensor:
    return model(torch.tensor([ids]), use_cache=False).logits[0, -1].double()


def greedy(model, router: RouterMargin, ids: list[int]):
    """The tokens, and the smallest margins in standard deviations and in router logits."""
    output, margin = [], math.inf
    router.smallest = math.inf
    for _ in range(NEW_TOKENS):
        row = logits(model, ids + output)
        best = row.topk(2)
        margin = min(margin, float(best.values[0] - best.values[1]) / float(row.std()))
        if margin < MARGIN or router.smallest < ROUTER_MARGIN:
            return None
        output.append(int(best.indices[0]))
    return output, margin, router.smallest


def greedy_cases(model) -> list[dict]:
    router, cases, seed = RouterMargin(model), [], 0
    for length in LENGTHS:
        while True:
            seed += 1
            ids = prompt(seed, length)
            if found := greedy(model, router, ids):
                output, margin, router_margin = found
                case = {"seed": seed, "length": length, "output": output, "margin": round(margin, 5)}
                if math.isfinite(router_margin):
                    case["router_margin"] = float(f"{router_margin:.2g}")
                cases.append(case)
                break
    return cases


def logit_cases(model) -> list[dict]:
    cases = []
    for seed, length in enumerate(LOGIT_LENGTHS, 1):
        row = logits(model, prompt(seed, length))
        row = row - row.mean()
        cases.append({"seed": seed, "length": length, "logits": [float(f"{value:.6g}") for value in row.tolist()]})
    return cases


def main() -> None:
    torch.set_num_threads(2)
    transformers.logging.set_verbosity_error()
    models = []
    for number, architecture in enumerate(FAMILIES, 1):
        small, large = config(architecture, False), config(architecture, True)
        model = load(small, number, False)
        entry = {
            "architecture": architecture,
            "f32": {"config": small, "seed": number, "tensors": tensors(small), "greedy": greedy_cases(model),
                    "logits": logit_cases(model)},
        }
        model = load(large, number, True)
        entry["bf16"] = {"config": large, "seed": number, "tensors": tensors(large), "logits": logit_cases(model)}
        models.append(entry)
        tried = entry["f32"]["greedy"][-1]["seed"]
        weights = sum(math.prod(shape) for _, shape, _, _ in tensors(large))
        print(f"{architecture}: {tried} prompts tried for {len(LENGTHS)}; {weights} bf16 weights", flush=True)
    golden = {
        "made_with": {"torch": torch.__version__, "transformers": transformers.__version__, "numpy": np.__version__},
        "vocab": VOCAB,
        "models": models,
    }
    path = pathlib.Path(__file__).with_name("golden.json")
    path.write_text(json.dumps(golden, separators=(",", ":")).replace('{"architecture"', '\n{"architecture"') + "\n")
    print(f"{path}: {path.stat().st_size} bytes")


if __name__ == "__main__":
    main()
