"""The experts of one layer on a GPU: this library against torch._grouped_mm, which is how transformers' "grouped_mm"
goes through them (sort by expert, both grouped products, SwiGLU, back into order, sum by the gates). The router is left
out on both sides; dense bf16 weights here, pruned ones there; both read other experts from one replayed layer to the next.

    python3 transformers_moe_layer.py ./moe_layer     # built by bench/cuda/build.sh
"""

import statistics
import struct
import subprocess
import sys

import torch

RUNS = 16
TOKENS = (1, 4, 16, 64)
# Experts, hidden, width, top-k.
MODELS = {"Mixtral-8x7B": (8, 4096, 14336, 2), "Qwen3-30B-A3B": (128, 2048, 768, 8)}


def experts_forward(hidden, chosen, gates, gate_up, down):
    experts = gate_up.size(0)
    tokens, top_k = chosen.shape
    expert_of_pair = chosen.reshape(-1)
    order = torch.argsort(expert_of_pair)
    back = torch.argsort(order)
    sorted_experts = expert_of_pair[order]
    rows = hidden[order // top_k]
    counts = torch.histc(sorted_experts.int(), bins=experts, min=0, max=experts - 1)
    offsets = torch.cumsum(counts, dim=0, dtype=torch.int32)
    gate, up = torch._grouped_mm(rows, gate_up.transpose(-2, -1), offs=offsets).chunk(2, dim=-1)
    out = torch._grouped_mm(torch.nn.functional.silu(gate) * up, down.transpose(-2, -1), offs=offsets)
    out = out * gates.reshape(-1)[order].unsqueeze(-1)
    return out[back].view(tokens, top_k, -1).sum(dim=1)


def graph_of(launch):
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        launch()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        launch()
    return graph.replay


def micros(replay):
    times = []
    for repeat in range(11):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        replay()
        end.record()
        end.synchronize()
        if repeat >= 2:
            times.append(1000 * begin.elapsed_time(end) / RUNS)
    return statistics.median(times)


@torch.inference_mode()
def time_torch(shape, tokens, chosen):
    experts, hidden, width, top_k = shape
    gate_up, down = weights
    x = torch.randn(tokens, hidden, device="cuda", dtype=torch.bfloat16)
    gates = torch.rand(tokens, top_k, device="cuda", dtype=torch.bfloat16)
    routes = torch.tensor(chosen, device="cuda").view(RUNS, tokens, top_k)
    # Against one expert after the other, in float32.
    found = experts_forward(x, routes[0], gates, gate_up, down).float()
    wanted = torch.zeros_like(found)
    for token in range(tokens):
        for j in range(top_k):
            e = routes[0][token][j]
            gate, up = (gate_up[e].float() @ x[token].float()).chunk(2)
            wanted[token] += gates[token][j].float() * (down[e].float() @ (torch.nn.functional.silu(gate) * up))
    error = ((found - wanted).norm() / wanted.norm()).item()
    assert error < 2e-2, error

    def launch():
        for route in routes:
            experts_forward(x, route, gates, gate_up, down)

    return micros(graph_of(launch))


ours = {}
for line in subprocess.run([sys.argv[1]], check=True, capture_output=True, text=True).stdout.splitlines():
    fields = line.split("; ")
    if len(fields) == 4:
        ours.setdefault((fields[0], int(fields[1])), []).append((fields[2], float(fields[3])))
    else:
        print(line)
print(f"torch {torch.__version__}, {torch.cuda.get_device_name()}")
with open("moe_routes.bin", "rb") as file:
    for name, shape in MODELS.items():
        experts, hidden, width, top_k = shape
        torch.manual_seed(torch.seed())
        weights = [
            torch.empty(experts, rows, cols, device="cuda", dtype=torch.bfloat16).normal_(0, 0.02)
            for rows, cols in ((2 * width, hidden), (hidden, width))
        ]
        for tokens in TOKENS:
            count = RUNS * tokens * top_k
            torch_micros = time_torch(shape, tokens, struct.unpack(f"{count}i", file.read(4 * count)))
            cells = (f"{what} {us:.1f} ({torch_micros / us:.2f})" for what, us in ours[name, tokens])
            print(f"| {name} | {tokens} | {torch_micros:.1f} | {' | '.join(cells)} |")
        del weights
