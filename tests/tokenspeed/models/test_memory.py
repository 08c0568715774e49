"""What a model takes on a device."""

from experiments.bench.models import config_of
from tokenspeed.models import memory


def test_a_chunk_behind_the_first_gathers_one_layers_keys_and_values():
    config = config_of("llama-3.1-8b")
    whole, longer = (
        memory.plan(config, dtype="bfloat16", context=context, batch=1).workspace_bytes
        for context in (memory.PREFILL_TOKENS, memory.PREFILL_TOKENS + 1)
    )
    one_layer = (memory.PREFILL_TOKENS + 1) * config.kv_bytes_per_token(2) // config.num_layers
    assert longer - whole == one_layer
