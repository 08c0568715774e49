"""Every tile of the fused decode kernels, checked and timed.

    python -m experiments.sweep --config=tiles.py

On one H200 (16 cores to compile with): half a second a tile; on 2 cores without a GPU: 2 to 4 minutes.

Expected on a GPU: a record per tile in out/sweep-<device>.jsonl, a table of winners as microseconds, GB/s and percent
of the read ceiling measured in the same run beside XLA's time, a heat map per op and a roofline in out/plots. Without
a GPU: no kernel is timed. A reduced grid of tiles is checked in interpret mode, a sample is lowered for CUDA, feasible
tiles are counted for four GPUs, and XLA's own implementation is timed on this processor.

Any field is overridden on the command line, tuples with commas:

    python -m experiments.sweep --config=tiles.py --ops=qkv,out --rows=1,8 --max_tiles=40
    python -m experiments.sweep --config=tiles.py --ops=attention --page_sizes=0,16,64,256
    python -m experiments.sweep --config=tiles.py --ops=attention --kv_dtypes=fp8,int8
    python -m experiments.sweep --config=tiles.py --rows=32,64,128,256

For more than 16 rows a weight's kernels can be cut in many more ways, since a program may take fewer rows than there
are: all that can run, some 5,000 tiles, would take an hour. Their search space has the most promising ones first, so of
each case the first `max_tiles_many_rows` that can run are tried, and not a sample of all. Attention's space is in no
such order: of that it is an even sample.
"""

import ml_collections


def get_config() -> ml_collections.ConfigDict:
    config = ml_collections.ConfigDict()

    # The cases: every combination, as a decode step of so many sequences calls them. Contexts, page sizes and
    # what caches are stored in are attention's alone.
    config.ops = ("qkv", "attention", "out", "gate_up", "down", "head")
    config.models = ("llama-3.1-8b", "llama-3.2-1b")
    config.rows = (1,)
    config.dtypes = ("bf16",)
    config.contexts = (1024, 8192)
    config.page_sizes = (0,)  # positions of a page of the KV cache, whose pages lie in no order; 0: it is contiguous
    config.kv_dtypes = ("auto",)  # what keys and values are stored in: auto, fp8 or int8, or two of them as keys/values

    # The tiles: values that each field may have; () leaves it as the op's search space has it.
    config.block_m = ()
    config.block_n = ()
    config.block_k = ()
    config.block_t = ()
    config.block_s = ()
    config.splits = ()
    config.num_warps = ()
    config.num_stages = ()
    config.mma = ()
    config.swap_ab = ()
    config.max_tiles = 0  # of each case, spread evenly, the tuned and the default tile among them; 0: all
    config.max_tiles_many_rows = 16  # of each case of more than 16 rows, those two and the first of the space; 0: all

    # Timing on a GPU.
    config.samples = 9  # of a tile within 15% of the best so far
    config.quick_samples = 3  # of every tile, to see whether it is
    config.calls = 0  # calls in one pass of a chain; 0: by the size of the case
    config.passes = 0  # passes of a chain; 0: by the size of the case
    config.compile_workers = 0  # threads that compile; 0: one a core
    config.time_limit_s = 0.0  # stop after the tile at which this is reached; 0: never

    # Without a GPU.
    config.devices = ("a100", "h100", "h200", "b200")  # whose limits `feasible` is asked for
    config.lower_tiles = 6  # of each case, lowered for CUDA; 0: all
    config.interpret_model = "ragged"  # small, of sizes that no tile divides
    config.interpret_rows = (1, 3)
    config.interpret_context = 80
    config.interpret_tiles = 6  # of each case, run in interpret mode against the reference; 0: all
    config.cpu_models = ("llama-3.2-1b",)  # whose XLA implementation is timed on this processor

    config.seed = 0
    config.results = "out/sweep-{device}.jsonl"
    config.plots = "out/plots"  # folder of the pictures; "" draws none
    config.promote = False  # write the winners to pallas_kernels/tuned
    return config
