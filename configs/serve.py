r"""Servers under load, by any OpenAI-compatible address: how long requests wait, at which rate.

    python -m tokenspeed serve --port 8000 &
    python -m experiments.serve_bench --config=serve.py

18 seconds a case, with what is still answered after them. Expected: a record for each endpoint, mix and rate in
out/serve-<device>.jsonl, a table, and pictures in out/serve: the time to the first token, of a token after it and of a
whole request (p50, p90, p95, p99), tokens a second, and the requests a second that met the objective. Times are from
when a request was due, also where the client was late, so that a stall counts for all that waited behind it.

Any field is overridden on the command line, tuples with commas; of several endpoints each case is run on one after the
other, in turn:

    python -m experiments.serve_bench --config=serve.py --endpoints=ours=http://127.0.0.1:8000/v1,vllm=http://127.0.0.1:8001/v1
    python -m experiments.serve_bench --config=serve.py --arrivals=closed --concurrency=1,8,16 --mixes=chat,both

Servers can be started for it, one command for a figure; what they print is beside the records:

    python -m experiments.serve_bench --config=serve.py --commands="ours=python -m tokenspeed serve --port 8000"

Prompts of exactly 1024 tokens, and what one of 30,000 every few seconds costs them (DIR: the served checkpoint; without
weights `python -m experiments.random_checkpoint --out=DIR` makes one):

    python -m experiments.serve_bench --config=serve.py --tokenizer=DIR --spread=0 --chat_input=1024 --chat_output=128 \
        --mixes=both --long_input=30000 --rates=1,2,4,8 --seconds=60 --model=llama-3.1-8b
"""

import ml_collections


def get_config() -> ml_collections.ConfigDict:
    config = ml_collections.ConfigDict()

    config.endpoints = ("ours=http://127.0.0.1:8000/v1",)  # NAME=URL; the name is that in records
    config.commands = ()  # NAME=COMMAND, without commas: starts the server of that endpoint, which is ended afterwards
    config.ready_s = 300.0  # that servers may take until they answer
    config.model = "local"  # that requests ask for
    config.api_key = ""

    # The load.
    config.arrivals = "poisson"  # poisson | bursty | closed
    config.rates = (1.0, 4.0)  # requests a second, on average, of poisson and bursty
    config.burst = 8  # requests that arrive together, of bursty
    config.concurrency = (1, 8)  # under way at a time, of closed
    config.mixes = ("chat",)  # chat | long | both: chats, without and with a long prompt every long_every_s
    config.seconds = 15.0  # of a case, after warm_s, which do not count
    config.warm_s = 3.0
    config.repeats = 1  # of each case, in turn on all endpoints
    config.ignore_eos = True  # every request gets as many tokens as it asks for, where the server knows this field
    config.continuous_usage = True  # each event says how many tokens there are by now, where the server knows this too
    config.seed = 0  # of when requests are due and how long they are; repeats have others

    # Its requests; the small model has 512 positions.
    config.tokenizer = ""  # a tokenizer.json or its folder, the server's: inputs are in its tokens; "": in words
    config.spread = 0.6  # of chats: standard deviation of the logarithm of a length; 0: all are the median
    config.chat_input = 20  # medians of chats, up to four times that
    config.chat_output = 24
    config.long_input = 90
    config.long_output = 16
    config.long_every_s = 4.0

    # The objective that goodput is of.
    config.slo_ttft_ms = 500.0
    config.slo_tpot_ms = 50.0  # mean of a request's tokens after the first

    config.most_late_ms = 20.0  # p99 of sends and of the client's event loop; a case that is later does not count
    config.timeout_s = 300.0  # of a request
    config.results = "out/serve-{device}.jsonl"
    config.plots = "out/serve"  # folder of the pictures; "" draws none
    return config
