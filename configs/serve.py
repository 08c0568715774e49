"""Servers under load, by any OpenAI-compatible address: how long requests wait, at which rate.

    python -m tokenspeed serve --port 8000 &
    python -m experiments.serve_bench --config=serve.py

18 seconds a case, with what is still answered after them. Expected: a record for each endpoint, mix and rate in
out/serve-<device>.jsonl, and a table: the time to the first token, between tokens and of a whole request (p50, p90,
p95, p99), tokens a second, and the requests a second that met the objective. Times are from when a request was due,
also where the client was late, so that a stall counts for all that waited behind it.

Any field is overridden on the command line, tuples with commas; of several endpoints each case is run on one after the
other, in turn:

    python -m experiments.serve_bench --config=serve.py --endpoints=ours=http://127.0.0.1:8000/v1,vllm=http://127.0.0.1:8001/v1
    python -m experiments.serve_bench --config=serve.py --arrivals=closed --concurrency=1,8,16 --mixes=chat,both
"""

import ml_collections


def get_config() -> ml_collections.ConfigDict:
    config = ml_collections.ConfigDict()

    config.endpoints = ("ours=http://127.0.0.1:8000/v1",)  # NAME=URL; the name is that in records
    config.model = "local"  # that requests ask for
    config.api_key = ""

    # The load.
    config.arrivals = "poisson"  # poisson | bursty | closed
    config.rates = (1.0, 4.0)  # requests a second, on average, of poisson and bursty
    config.burst = 8  # requests that arrive together, of bursty
    config.concurrency = (1, 8)  # under way at a time, of closed
    config.mixes = ("chat",)  # chat | long | both: chats, and a long prompt every long_every_s
    config.seconds = 15.0  # of a case, after warm_s, which do not count
    config.warm_s = 3.0
    config.repeats = 1  # of each case, in turn on all endpoints
    config.ignore_eos = True  # every request gets as many tokens as it asks for, where the server knows this field
    config.seed = 0

    # Its requests: medians of a chat, up to four times that, and every long prompt; the small model has 512 positions.
    config.chat_words = 20
    config.chat_tokens = 24
    config.long_words = 90
    config.long_tokens = 16
    config.long_every_s = 4.0

    # The objective that goodput is of.
    config.slo_ttft_ms = 500.0
    config.slo_itl_ms = 50.0

    config.timeout_s = 300.0  # of a request
    config.results = "out/serve-{device}.jsonl"
    return config
