"""The small model that the tests of decode share: a decoder of it is made once."""

import functools

from experiments.bench.workload import Decoder
from tokenspeed.models import hf_config

SMALL = dict(
    model_type="llama", vocab_size=96, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
    num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=512, rms_norm_eps=1e-5,
    tie_word_embeddings=True,
)  # fmt: skip
CONFIG = hf_config.from_dict(SMALL)

decoder_of = functools.cache(Decoder)
