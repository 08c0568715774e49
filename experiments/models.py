"""The shapes of the models that are measured, as their published config.json files give them."""

import dataclasses


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelShape:
    """Sizes by the letters of the docs: D, F, N, K, H, V, L."""

    d_model: int
    d_ff: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    vocab: int
    layers: int


MODELS = {
    "llama-3.1-8b": ModelShape(
        d_model=4096, d_ff=14336, num_heads=32, num_kv_heads=8, head_dim=128, vocab=128256, layers=32
    ),
    "llama-3.2-1b": ModelShape(
        d_model=2048, d_ff=8192, num_heads=32, num_kv_heads=8, head_dim=64, vocab=128256, layers=16
    ),
    "llama-3.2-3b": ModelShape(
        d_model=3072, d_ff=8192, num_heads=24, num_kv_heads=8, head_dim=128, vocab=128256, layers=28
    ),
    "qwen2.5-0.5b": ModelShape(
        d_model=896, d_ff=4864, num_heads=14, num_kv_heads=2, head_dim=64, vocab=151936, layers=24
    ),
    # Small enough for interpret mode; ragged on purpose. No published model.
    "tiny": ModelShape(d_model=160, d_ff=344, num_heads=4, num_kv_heads=2, head_dim=40, vocab=500, layers=2),
}
