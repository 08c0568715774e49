"""Decode: milliseconds a token, and what share of the memory's read ceiling that is.

    python -m experiments.decode --config=decode.py

Two minutes on an H200, most of it the larger model's, as on 2 cores without a GPU.

Expected: a record for each model, dtype, batch, context, page size and implementation in out/decode-<device>.jsonl, a
table, and a picture of percent of the ceiling, the fused kernels and XLA beside each other. Every record names the read
ceiling that was measured in the same run, and its status is 'ok', or says why it is void or failed. Without a GPU XLA
alone is timed, on a small model, against this processor's own ceiling.

Any field is overridden on the command line, tuples with commas:

    python -m experiments.decode --config=decode.py --models=llama-3.2-1b --contexts=128,1024,8192,32768
    python -m experiments.decode --config=decode.py --models=DIR/config.json --batches=1,8
    python -m experiments.decode --config=decode.py --page_sizes=0,16,64,256
    python -m experiments.decode --config=decode.py --kv_dtypes=auto,fp8,int8,auto/fp8 --contexts=8192

Many sequences need memory for their caches, of which those of one batch are there at a time: of the larger model 19 GB
for 128 sequences at this context and 38 GB for 256, beside 16 GB of weights.
"""

import ml_collections


def get_config() -> ml_collections.ConfigDict:
    config = ml_collections.ConfigDict()

    # The cases: every combination. () is what suits the machine: the first on a GPU, the second without one.
    config.models = ()  # names in configs/models, or paths of config.json; llama-3.1-8b, llama-3.2-1b | qwen2.5-0.5b
    config.implementations = ()  # triton, xla | xla
    config.dtypes = ()  # bf16 | f32
    config.batches = (1,)  # sequences at a time
    config.contexts = (1024,)  # positions in the cache before the first step
    config.page_sizes = (0,)  # positions of a page of the cache, whose pages lie in no order; 0: it is contiguous
    config.kv_dtypes = ("auto",)  # what keys and values are stored in: auto, fp8 or int8, or two of them as keys/values

    # A sample is one call of `steps` steps.
    config.steps = 127
    config.sequences = 5  # of their own random cache and first token
    config.repeats = 2  # samples of each sequence and compilation, whose tokens must be the same
    config.compilations = 0  # of each program, all of them timed; 0 is what suits the machine, 3 | 1
    config.seed = 0

    config.results = "out/decode-{device}.jsonl"
    config.picture = "out/decode-{device}.png"  # "" draws none
    config.profile = ""  # a folder for traces of jax.profiler, a call of every case and implementation; "" writes none
    return config
