"""What a model takes on a device."""

from tokenspeed.models import hf_config, memory
from tokenspeed.weights.tiny import folder_of


def test_a_chunk_behind_the_first_gathers_one_layers_keys_and_values(monkeypatch):
    monkeypatch.setattr(memory, "PREFILL_TOKENS", 64)
    config = hf_config.from_folder(folder_of("tiny"))
    whole, longer = (
        memory.plan(config, dtype="bfloat16", context=context, batch=1).workspace_bytes for context in (64, 65)
    )
    assert longer - whole == 65 * config.kv_bytes_per_token(2) // config.num_layers
