"""What `transformers` makes of the shapes of decode_model, to compare with on the same GPU: python3 transformers_decode.py

Qwen3-30B-A3B, dense bf16, random weights, batch 1, context 1024: medians of 20 greedy steps with its dynamic cache, for each of
its ways to run experts that fits the memory."""

import statistics
import time

import torch
import transformers
from transformers import AutoModelForCausalLM, Qwen3MoeConfig
from transformers.initialization import no_init_weights

CONTEXT = 1024
STEPS = 24
WARM_UP = 4


def random_model():
    config = Qwen3MoeConfig(
        vocab_size=151936,
        hidden_size=2048,
        intermediate_size=6144,
        moe_intermediate_size=768,
        num_hidden_layers=48,
        num_attention_heads=32,
        num_key_value_heads=4,
        head_dim=128,
        num_experts=128,
        num_experts_per_tok=8,
        norm_topk_prob=True,
        decoder_sparse_step=1,
        max_position_embeddings=4096,
        tie_word_embeddings=False,
    )
    torch.set_default_dtype(torch.bfloat16)
    with torch.device("cuda"), no_init_weights():
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name:
                parameter.fill_(1)
            else:
                parameter.normal_(0, 0.02)
    return model.eval()


@torch.inference_mode()
def seconds_a_step(model):
    out = model(torch.randint(0, 151936, (1, CONTEXT), device="cuda"), use_cache=True, logits_to_keep=1)
    cache = out.past_key_values
    token = out.logits[:, -1].argmax(-1, keepdim=True)
    times = []
    for _ in range(STEPS):
        begin = time.perf_counter()
        out = model(token, past_key_values=cache, use_cache=True)
        token = out.logits[:, -1].argmax(-1, keepdim=True)
        token.item()
        times.append(time.perf_counter() - begin)
    return statistics.median(times[WARM_UP:])


model = random_model()
print(f"transformers {transformers.__version__}, torch {torch.__version__}, {torch.cuda.get_device_name()}")
for experts in ("eager", "grouped_mm", "batched_mm"):
    try:
        model.set_experts_implementation(experts)
        seconds = seconds_a_step(model)
        print(f"{experts}: {seconds * 1000:.1f} ms a step, {1 / seconds:.1f} tokens/s")
    except torch.cuda.OutOfMemoryError:
        print(f"{experts}: does not fit the memory")
