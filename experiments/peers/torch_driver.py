"""Decode steps of a plain LLaMA in PyTorch on random bf16 weights: run by `python -m experiments.peers --engine=torch`.

Takes a request as JSON and prints {"batch", "ms", "version", "how"} for each batch, `ms` a list: the time of `steps`
greedy steps by `steps`, every step on the one before, the cache static, under `torch.compile(mode="max-autotune")`,
whose CUDA graphs replay the step. On a processor, which has none, it is compiled all the same: for trying it out.
"""

import json
import math
import sys
import time
from pathlib import Path

import torch
import torch._inductor.config as inductor
from torch import nn
from torch.nn import functional as F


def rope_tables(config: dict, positions: int, device) -> tuple[torch.Tensor, torch.Tensor]:
    """(cos, sin) [positions, H], the scaling of Llama 3.1 where the config has it."""
    size = config["head_dim"]
    frequency = config.get("rope_theta", 10000.0) ** (-torch.arange(0, size, 2, device=device).float() / size)
    scaling = config.get("rope_scaling")
    if scaling and scaling.get("rope_type") == "llama3":
        wavelength = 2 * math.pi / frequency
        original, low, high = (
            scaling[n] for n in ("original_max_position_embeddings", "low_freq_factor", "high_freq_factor")
        )
        share = ((original / wavelength - low) / (high - low)).clamp(0, 1)
        frequency = share * frequency + (1 - share) * frequency / scaling["factor"]
    angles = torch.arange(positions, device=device).float()[:, None] * frequency
    angles = torch.cat([angles, angles], -1)
    return angles.cos(), angles.sin()


class Norm(nn.Module):
    def __init__(self, size: int, eps: float):
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(size)), eps

    def forward(self, x):
        wide = x.float()
        return (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.eps)).to(x.dtype) * self.weight


class Layer(nn.Module):
    def __init__(self, config: dict, batch: int, positions: int):
        super().__init__()
        width, features = config["hidden_size"], config["intermediate_size"]
        self.heads, self.kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
        self.size = config["head_dim"]
        self.attention_norm, self.mlp_norm = (Norm(width, config["rms_norm_eps"]) for _ in range(2))
        self.qkv = nn.Linear(width, (self.heads + 2 * self.kv_heads) * self.size, bias=False)
        self.out = nn.Linear(self.heads * self.size, width, bias=False)
        self.gate_up = nn.Linear(width, 2 * features, bias=False)
        self.down = nn.Linear(features, width, bias=False)
        for name in ("k", "v"):
            self.register_buffer(name, torch.zeros(batch, self.kv_heads, positions, self.size))

    def forward(self, x, position, cos, sin, mask):
        rows = x.shape[0]
        q, k, v = (
            part.view(rows, 1, -1, self.size).transpose(1, 2)
            for part in self.qkv(self.attention_norm(x)).split(
                [self.heads * self.size, self.kv_heads * self.size, self.kv_heads * self.size], -1
            )
        )

        def rotate(part):
            low, high = part.float().chunk(2, -1)
            return (part.float() * cos + torch.cat([-high, low], -1) * sin).to(part.dtype)

        self.k.index_copy_(2, position, rotate(k))
        self.v.index_copy_(2, position, v)
        # Each key is read once for its group of heads: scaled_dot_product_attention with a mask repeats them in memory.
        grouped = rotate(q).reshape(rows, self.kv_heads, -1, self.size)
        scores = (grouped @ self.k.transpose(2, 3)).float() * self.size**-0.5
        shares = scores.masked_fill(~mask, float("-inf")).softmax(-1).to(x.dtype)
        x = x + self.out((shares @ self.v).reshape(rows, 1, -1))
        gate, up = self.gate_up(self.mlp_norm(x)).chunk(2, -1)
        return x + self.down(F.silu(gate) * up)


class Llama(nn.Module):
    def __init__(self, config: dict, batch: int, positions: int):
        super().__init__()
        self.embedding = nn.Embedding(config["vocab_size"], config["hidden_size"])
        self.layers = nn.ModuleList(Layer(config, batch, positions) for _ in range(config["num_hidden_layers"]))
        self.norm = Norm(config["hidden_size"], config["rms_norm_eps"])
        self.head = nn.Linear(config["hidden_size"], config["vocab_size"], bias=False)

    def forward(self, token, position):
        """token [B, 1] at position [1] -> the next greedy token [B, 1]."""
        x, mask = self.embedding(token), (self.places <= position)[None, None, None, :]
        for layer in self.layers:
            x = layer(x, position, self.cos[position], self.sin[position], mask)
        return self.head(self.norm(x)).argmax(-1)


def build(config: dict, batch: int, positions: int, device: str) -> Llama:
    """A model of random weights and a random cache, with no copy of either in the host's memory."""
    with torch.device("meta"):
        model = Llama(config, batch, positions)
    model = model.to(torch.bfloat16).to_empty(device=device)
    if config.get("tie_word_embeddings"):
        model.head.weight = model.embedding.weight
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.fill_(1.0) if "norm" in name else parameter.normal_(0, 0.02)
        for layer in model.layers:
            layer.k.normal_()
            layer.v.normal_()
    cos, sin = rope_tables(config, positions, device)
    for name, table in (("cos", cos), ("sin", sin), ("places", torch.arange(positions, device=device))):
        model.register_buffer(name, table)
    return model.eval().requires_grad_(False)


@torch.no_grad()
def times(config: dict, batch: int, request: dict, device: str) -> list[float]:
    """Milliseconds a step, of each repeat."""
    context, steps = request["context"], request["steps"]
    model = build(config, batch, -(-(context + steps) // 128) * 128, device)
    step = torch.compile(model, mode="max-autotune", fullgraph=True, dynamic=False)

    def once() -> float:
        token = torch.ones((batch, 1), dtype=torch.long, device=device)
        position = torch.full((1,), context, device=device)
        wait(device)
        begin = time.perf_counter()
        for _ in range(steps):
            if device == "cuda":
                torch.compiler.cudagraph_mark_step_begin()
            token = step(token, position).clone()
            position.add_(1)
        wait(device)
        return 1e3 * (time.perf_counter() - begin) / steps

    for _ in range(3):  # compiled, recorded, warm
        once()
    return [once() for _ in range(request["repeats"])]


def wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def main(request: dict) -> None:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    inductor.coordinate_descent_tuning = True  # turns products of one row into reductions
    torch.manual_seed(0)
    config = json.loads(Path(request["config"]).read_text())
    config.setdefault("head_dim", config["hidden_size"] // config["num_attention_heads"])
    graphs = ", CUDA graphs" if device == "cuda" else ""
    how = f"torch.compile, max-autotune{graphs}, plain model, attention by grouped products"
    for batch in request["batches"]:
        torch._dynamo.reset()
        ms = times(config, batch, request, device)
        print(json.dumps(dict(batch=batch, ms=ms, version=torch.__version__, how=how)), flush=True)


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
