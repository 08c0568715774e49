"""Throughput: the engine under load, its tokens a second and how long its requests wait.

    python -m experiments.throughput --config=throughput.py

A minute on 2 cores without a GPU, most of it compiling.

Expected: a record for each model, dtype and concurrency in out/throughput-<device>.jsonl, and a table: tokens and
requests a second, the time to the first token and between tokens (p50 and p99), the whole of a request, and the host's
time of a step. Every status is 'ok', or says why the record is void or failed; nothing is compiled once the engine is
ready. Without a GPU the small model that ships with the project is served, by XLA, with short prompts.

Any field is overridden on the command line, tuples with commas:

    python -m experiments.throughput --config=throughput.py --models=llama-3.2-1b --concurrency=8 --output_tokens=512
    python -m experiments.throughput --config=throughput.py --long_prompts=30000
    python -m experiments.throughput --config=throughput.py --shared_prefixes=2048

The last two run those cases alone, unless a concurrency is named too.
"""

import ml_collections


def get_config() -> ml_collections.ConfigDict:
    config = ml_collections.ConfigDict()

    # () and 0 are what suits the machine: the first on a GPU, the second without one.
    config.models = ()  # names in configs/models, or paths of config.json; llama-3.1-8b, llama-3.2-1b | tiny
    config.dtypes = ()  # bf16 | f32

    # The load: requests of different random prompts.
    config.concurrency = ()  # under way at a time; 1, 8, 32, 64, 256 | 1, 4, and none where there are the cases below
    config.input_tokens = 0  # of a prompt; 1024 | 32
    config.output_tokens = 0  # that a request draws; 128 | 16
    config.rounds = 2  # requests of a case, by its concurrency
    config.least_requests = 8  # of a case

    # A long prompt that arrives while others decode, and a short one in the middle of it.
    config.long_prompts = ()  # their tokens
    config.background = 8  # requests of input_tokens that decode meanwhile
    config.short_tokens = 100  # of the short prompt; also what follows a shared prefix

    # Two requests that begin alike, one after the other.
    config.shared_prefixes = ()  # the tokens that they share
    config.repeats = 5  # of a long prompt or a prefix, each time another

    # The engine, one for all cases of a model.
    config.max_context = 0  # positions of a sequence; 0: as many as the cases need
    config.max_batched_tokens = 0  # of a step, of prompts and decode; 0: as the engine chooses
    config.kv_bytes = 0  # of its pool; 0: what the largest concurrency at max_context takes, as far as memory goes
    config.seed = 0

    config.results = "out/throughput-{device}.jsonl"
    return config
