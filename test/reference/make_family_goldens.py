"""Makes test/golden: tiny random checkpoints of every family with the logits and greedy ids of Hugging Face transformers,
the rotary frequencies of its ROPE_INIT_FUNCTIONS, and the tensor shapes and parameter counts of published models.

    python3 test/reference/make_family_goldens.py test/golden

Needs torch (CPU is enough) and transformers 5. Weights are random but bf16-representable and saved in the type that the
case names; logits are float32 with eager attention, from the saved folder as a user would load it.
"""

import json
import shutil
import sys
from pathlib import Path

import torch
import transformers
from transformers import AutoModelForCausalLM, MixtralConfig, OlmoeConfig, Qwen2MoeConfig, Qwen3MoeConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

PROMPT_TOKENS = 24
MIDDLE = 11
GREEDY_TOKENS = 16

TINY = dict(
    vocab_size=128,
    hidden_size=64,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=64,
    bos_token_id=1,
    eos_token_id=2,
)


def old_rope(config):
    """Rewrites `rope_parameters` as transformers 4 stored it."""
    parameters = config.pop("rope_parameters")
    config["rope_theta"] = parameters.pop("rope_theta")
    config["rope_scaling"] = None if parameters["rope_type"] == "default" else parameters


def legacy_type_key(config):
    """As transformers before 4.43 stored it: `type` where later ones say `rope_type`."""
    old_rope(config)
    config["rope_scaling"]["type"] = config["rope_scaling"].pop("rope_type")


# name -> (config, how it is saved)
FAMILIES = {
    "mixtral-window": (
        MixtralConfig(
            **TINY,
            intermediate_size=48,
            num_local_experts=4,
            num_experts_per_tok=2,
            sliding_window=8,
            rope_parameters={"rope_type": "default", "rope_theta": 1e6},
        ),
        dict(edit=old_rope, shard="60KB"),
    ),
    "mixtral-fused": (
        MixtralConfig(**TINY, intermediate_size=32, num_local_experts=6, num_experts_per_tok=3, head_dim=32),
        dict(fused=True),
    ),
    "qwen2-moe-dense-layer": (
        Qwen2MoeConfig(
            **{**TINY, "num_hidden_layers": 3},
            intermediate_size=48,
            moe_intermediate_size=32,
            shared_expert_intermediate_size=40,
            num_experts=4,
            num_experts_per_tok=2,
            norm_topk_prob=False,
            mlp_only_layers=[1],
            rope_parameters={"rope_type": "default", "rope_theta": 1e4},
        ),
        {},
    ),
    "qwen2-moe-window": (
        Qwen2MoeConfig(
            **{**TINY, "num_hidden_layers": 4},
            intermediate_size=40,
            moe_intermediate_size=32,
            shared_expert_intermediate_size=24,
            num_experts=4,
            num_experts_per_tok=2,
            norm_topk_prob=True,
            decoder_sparse_step=2,
            qkv_bias=False,
            use_sliding_window=True,
            sliding_window=6,
            max_window_layers=3,
        ),
        dict(edit=lambda config: config.pop("layer_types")),
    ),
    "qwen3-moe-yarn": (
        Qwen3MoeConfig(
            **{**TINY, "num_attention_heads": 8, "eos_token_id": [2, 5]},
            head_dim=16,
            intermediate_size=48,
            moe_intermediate_size=24,
            num_experts=8,
            num_experts_per_tok=3,
            norm_topk_prob=True,
            tie_word_embeddings=True,
            rope_parameters={
                "rope_type": "yarn",
                "rope_theta": 1e6,
                "factor": 4.0,
                "original_max_position_embeddings": 16,
            },
        ),
        dict(edit=old_rope),
    ),
    "qwen3-moe-bias": (
        Qwen3MoeConfig(
            **TINY,
            head_dim=24,
            intermediate_size=48,
            moe_intermediate_size=32,
            num_experts=4,
            num_experts_per_tok=1,
            norm_topk_prob=False,
            attention_bias=True,
            rope_parameters={
                "rope_type": "llama3",
                "rope_theta": 5e5,
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 16,
            },
        ),
        {},
    ),
    "qwen3-moe-fused": (
        Qwen3MoeConfig(
            **TINY,
            head_dim=16,
            intermediate_size=48,
            moe_intermediate_size=32,
            num_experts=6,
            num_experts_per_tok=2,
            norm_topk_prob=True,
            use_sliding_window=True,
            sliding_window=8,
        ),
        dict(fused=True, dtype=torch.float16),
    ),
    "olmoe-clip": (
        OlmoeConfig(
            **TINY,
            intermediate_size=32,
            num_experts=6,
            num_experts_per_tok=3,
            norm_topk_prob=True,
            clip_qkv=1.0,
            rope_parameters={"rope_type": "linear", "rope_theta": 1e4, "factor": 2.0},
        ),
        dict(edit=legacy_type_key),
    ),
    "olmoe-bias": (
        OlmoeConfig(
            **{**TINY, "num_key_value_heads": 4},
            intermediate_size=24,
            num_experts=4,
            num_experts_per_tok=2,
            norm_topk_prob=False,
            attention_bias=True,
        ),
        dict(dtype=torch.float32),
    ),
}


def fill(model, seed):
    """Random weights with norms away from 1 and logits that are not flat."""
    generator = torch.Generator().manual_seed(seed)
    tied = model.config.tie_word_embeddings
    for name, parameter in sorted(model.named_parameters()):
        noise = torch.randn(parameter.shape, generator=generator)
        if "norm" in name:
            value = 1 + 0.3 * noise
        elif parameter.dim() == 1:
            value = 0.3 * noise
        elif "embed_tokens" in name:
            value = (0.3 if tied else 1.0) * noise
        elif "lm_head" in name or name.endswith("mlp.gate.weight"):
            value = 0.35 * noise
        else:
            value = 1.3 * noise / parameter.shape[-1] ** 0.5
        parameter.data.copy_(value.bfloat16().float())


def load(folder):
    model, report = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager", output_loading_info=True
    )
    for key in ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs"):
        assert not report.get(key), (folder, key, report[key])
    return model.eval()


def digits(values):
    return [float(f"{value:.6g}") for value in values.tolist()]


@torch.no_grad()
def golden(model, seed):
    generator = torch.Generator().manual_seed(1000 + seed)
    ids = torch.randint(3, model.config.vocab_size, (1, PROMPT_TOKENS), generator=generator)
    logits = model(ids).logits[0]
    greedy, gaps, past, step = [], [], None, ids
    for _ in range(GREEDY_TOKENS):
        out = model(step, past_key_values=past, use_cache=True)
        past = out.past_key_values
        top = out.logits[0, -1].topk(2)
        gaps.append((top.values[0] - top.values[1]).item())
        greedy.append(top.indices[0].item())
        step = top.indices[:1].unsqueeze(0)
    whole = model(torch.cat([ids, torch.tensor([greedy[:-1]])], dim=1)).logits[0, PROMPT_TOKENS - 1 :]
    assert whole.argmax(-1).tolist() == greedy, "the cache changes the greedy ids"
    return {
        "transformers": transformers.__version__,
        "ids": ids[0].tolist(),
        "positions": [MIDDLE, PROMPT_TOKENS - 1],
        "logits": [digits(logits[MIDDLE]), digits(logits[-1])],
        "greedy": greedy,
        "smallestGap": float(f"{min(gaps):.4g}"),
        "layers": describe(model),
    }


def describe(model):
    """What transformers made of the config, one entry a layer."""
    config = model.config
    layers = []
    for index, layer in enumerate(model.model.layers):
        windows = getattr(config, "layer_types", None)
        sliding = windows[index] == "sliding_attention" if windows else getattr(config, "sliding_window", None) is not None
        attention = layer.self_attn
        layers.append(
            {
                "window": config.sliding_window if sliding else 0,
                "headDim": attention.head_dim,
                "experts": layer.mlp.experts.num_experts if hasattr(layer.mlp, "experts") else 0,
                "qBias": attention.q_proj.bias is not None,
                "oBias": attention.o_proj.bias is not None,
            }
        )
    return layers


def make_families(root):
    for seed, (name, (config, how)) in enumerate(FAMILIES.items()):
        folder = root / name
        shutil.rmtree(folder, ignore_errors=True)
        model = AutoModelForCausalLM.from_config(config)
        fill(model, seed)
        wanted = {key: value.clone() for key, value in model.state_dict().items()}
        model.to(how.get("dtype", torch.bfloat16)).save_pretrained(
            folder, save_original_format=not how.get("fused", False), max_shard_size=how.get("shard", "1GB")
        )
        if "edit" in how:
            path = folder / "config.json"
            stored = json.loads(path.read_text())
            how["edit"](stored)
            path.write_text(json.dumps(stored, indent=2) + "\n")
        loaded = load(folder)
        for key, value in loaded.state_dict().items():
            assert torch.allclose(value, wanted[key], rtol=0, atol=1e-7), (name, key)
        result = golden(loaded, seed)
        (folder / "golden.json").write_text(json.dumps(result) + "\n")
        print(name, "smallest gap", result["smallestGap"], "greedy", result["greedy"], result["layers"])


ROPE_CASES = [
    ("default", 16, 64, None, {"rope_type": "default", "rope_theta": 1e4}),
    ("default, long", 128, 32768, None, {"rope_type": "default", "rope_theta": 1e6}),
    ("linear", 64, 8192, None, {"rope_type": "linear", "rope_theta": 1e4, "factor": 4.0}),
    ("yarn of Qwen3", 128, 40960, None, {"rope_type": "yarn", "rope_theta": 1e6, "factor": 4.0, "original_max_position_embeddings": 32768}),
    ("yarn, betas", 64, 16384, None, {"rope_type": "yarn", "rope_theta": 1e4, "factor": 16, "beta_fast": 24, "beta_slow": 2, "original_max_position_embeddings": 1024}),
    ("yarn, two mscales", 64, 163840, None, {"rope_type": "yarn", "rope_theta": 1e4, "factor": 40, "mscale": 0.7, "mscale_all_dim": 1.1, "original_max_position_embeddings": 4096}),
    ("yarn, attention factor", 32, 8192, None, {"rope_type": "yarn", "rope_theta": 1e5, "factor": 2.0, "attention_factor": 1.25, "original_max_position_embeddings": 4096}),
    ("yarn, not truncated", 64, 131072, None, {"rope_type": "yarn", "rope_theta": 150000, "factor": 32.0, "beta_fast": 32.0, "beta_slow": 1.0, "truncate": False, "original_max_position_embeddings": 4096}),
    ("yarn, original length outside", 64, 32768, 8192, {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0}),
    ("yarn, no original length", 64, 32768, None, {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0}),
    ("yarn, tiny context", 16, 64, None, {"rope_type": "yarn", "rope_theta": 1e6, "factor": 4.0, "original_max_position_embeddings": 16}),
    ("llama3", 128, 131072, None, {"rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}),
    ("llama3, factor 32", 64, 131072, None, {"rope_type": "llama3", "rope_theta": 5e5, "factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}),
    ("llama3, tiny context", 24, 64, None, {"rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 16}),
]


def make_rope(path):
    cases = []
    for name, head_dim, positions, original, parameters in ROPE_CASES:
        outside = {} if original is None else {"original_max_position_embeddings": original}
        config = Qwen3MoeConfig(
            head_dim=head_dim, max_position_embeddings=positions, rope_parameters=dict(parameters), **outside
        )
        if parameters["rope_type"] == "default":
            from transformers.models.qwen3_moe.modeling_qwen3_moe import Qwen3MoeRotaryEmbedding

            frequencies, scale = Qwen3MoeRotaryEmbedding.compute_default_rope_parameters(config)
        else:
            frequencies, scale = ROPE_INIT_FUNCTIONS[parameters["rope_type"]](config, "cpu")
        assert frequencies.dtype == torch.float32
        cases.append(
            {
                "name": name,
                "headDim": head_dim,
                "config": {"max_position_embeddings": positions, "rope_parameters": parameters, **outside},
                "inverseFrequencies": frequencies.tolist(),
                "scale": float(scale),
            }
        )
    path.write_text(json.dumps(cases) + "\n")


# The sizes of published checkpoints, as their config.json gives them.
PUBLISHED = {
    "Mixtral-8x7B": {
        "architectures": ["MixtralForCausalLM"], "model_type": "mixtral", "vocab_size": 32000, "hidden_size": 4096,
        "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8,
        "num_local_experts": 8, "num_experts_per_tok": 2, "max_position_embeddings": 32768, "rms_norm_eps": 1e-05,
        "rope_theta": 1000000.0, "sliding_window": None, "hidden_act": "silu", "tie_word_embeddings": False,
    },
    "OLMoE-1B-7B": {
        "architectures": ["OlmoeForCausalLM"], "model_type": "olmoe", "vocab_size": 50304, "hidden_size": 2048,
        "intermediate_size": 1024, "num_hidden_layers": 16, "num_attention_heads": 16, "num_key_value_heads": 16,
        "num_experts": 64, "num_experts_per_tok": 8, "max_position_embeddings": 4096, "rms_norm_eps": 1e-05,
        "rope_theta": 10000.0, "rope_scaling": None, "norm_topk_prob": False, "clip_qkv": None,
        "attention_bias": False, "hidden_act": "silu", "tie_word_embeddings": False,
    },
    "Qwen1.5-MoE-A2.7B": {
        "architectures": ["Qwen2MoeForCausalLM"], "model_type": "qwen2_moe", "vocab_size": 151936,
        "hidden_size": 2048, "intermediate_size": 5632, "moe_intermediate_size": 1408,
        "shared_expert_intermediate_size": 5632, "num_hidden_layers": 24, "num_attention_heads": 16,
        "num_key_value_heads": 16, "num_experts": 60, "num_experts_per_tok": 4, "decoder_sparse_step": 1,
        "norm_topk_prob": False, "max_position_embeddings": 8192, "rms_norm_eps": 1e-06, "rope_theta": 1000000.0,
        "use_sliding_window": False, "sliding_window": 32768, "max_window_layers": 21, "hidden_act": "silu",
        "tie_word_embeddings": False,
    },
    "Qwen3-30B-A3B": {
        "architectures": ["Qwen3MoeForCausalLM"], "model_type": "qwen3_moe", "vocab_size": 151936,
        "hidden_size": 2048, "intermediate_size": 6144, "moe_intermediate_size": 768, "num_hidden_layers": 48,
        "num_attention_heads": 32, "num_key_value_heads": 4, "head_dim": 128, "num_experts": 128,
        "num_experts_per_tok": 8, "decoder_sparse_step": 1, "mlp_only_layers": [], "norm_topk_prob": True,
        "attention_bias": False, "max_position_embeddings": 40960, "rms_norm_eps": 1e-06, "rope_theta": 1000000.0,
        "rope_scaling": None, "use_sliding_window": False, "sliding_window": None, "max_window_layers": 48,
        "hidden_act": "silu", "tie_word_embeddings": False,
    },
}


def make_published(path):
    classes = {c.model_type: c for c in (MixtralConfig, OlmoeConfig, Qwen2MoeConfig, Qwen3MoeConfig)}
    models = {}
    for name, stored in PUBLISHED.items():
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(classes[stored["model_type"]](**json.loads(json.dumps(stored))))
        shapes = {key: list(value.shape) for key, value in model.state_dict().items()}
        first = {k: v for k, v in shapes.items() if k.startswith("model.layers.0.")}
        for key, shape in shapes.items():
            if key.startswith("model.layers."):
                assert first["model.layers.0." + key.split(".", 3)[3]] == shape
        models[name] = {
            "config": stored,
            "parameters": sum(p.numel() for p in model.parameters()),
            "outside": {k: v for k, v in shapes.items() if not k.startswith("model.layers.")},
            "everyLayer": {k.removeprefix("model.layers.0."): v for k, v in first.items()},
        }
        print(name, models[name]["parameters"])
    path.write_text(json.dumps(models, indent=1) + "\n")


if __name__ == "__main__":
    root = Path(sys.argv[1])
    (root / "families").mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    make_families(root / "families")
    make_rope(root / "rope.json")
    make_published(root / "published.json")
