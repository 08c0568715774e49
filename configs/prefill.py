"""Prefill: the time to the first token, and that of a chunk of a long prompt beside the time of its parts.

    python -m experiments.prefill --config=prefill.py

Three minutes on an H100, most of it the larger model's weights and compilations; one on 2 cores without a GPU.

Expected: a record for each model, dtype, batch and length in out/prefill-<device>.jsonl, and a table: the milliseconds
from the call of `LLM.generate` to its return with one token of every prompt, with the 5th and the 95th percentile,
beside the least that the card's read ceiling, measured in the same run, and its datasheet's peak allow. Every status is
'ok', or says why the record is void or failed; all first tokens are those of `prefill_backend='xla'`, but for ties of
bf16. Without a GPU a small model is timed, by XLA, and beside its bytes alone.

Any field is overridden on the command line, tuples with commas:

    python -m experiments.prefill --config=prefill.py --batches=8 --prompts=1024
    python -m experiments.prefill --config=prefill.py --starts=30000 --chunks=512
    python -m experiments.prefill --config=prefill.py --models=llama-3.1-8b,llama-3.1-8b-int8,llama-3.1-8b-int4-g128

The last but one times chunks alone: 512 tokens behind 30,000 that are in the cache.
"""

import ml_collections


def get_config() -> ml_collections.ConfigDict:
    config = ml_collections.ConfigDict()

    # The cases: every combination. () is what suits the machine: the first on a GPU, the second without one.
    config.models = ()  # names in configs/models, or paths of config.json; llama-3.1-8b, llama-3.2-1b | qwen2.5-0.5b
    config.dtypes = ()  # bf16 | f32
    config.batches = (1,)  # prompts at a time
    config.prompts = ()  # their tokens; 128, 1024, 8192 | 128, and none where there are starts
    config.starts = ()  # positions before a chunk that is timed alone
    config.chunks = (512,)  # its tokens
    config.prefill_backend = ""  # cudnn, xla; "" is what LLM would choose

    config.samples = 10  # of each case
    config.sequences = 5  # different prompts, in turn, each at least twice, with the same first token every time
    config.check_up_to = 2048  # tokens of a prompt whose first tokens are compared with those of XLA's attention
    config.seed = 0

    config.results = "out/prefill-{device}.jsonl"
    return config
