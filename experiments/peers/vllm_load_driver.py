"""vLLM under load, random weights: run by `python -m experiments.peers --engine=vllm --concurrency=...`.

Takes a request as JSON: `config`, a path; `quantization`, which vLLM makes of bf16 weights itself, or null; `loads`,
each a list of prompts' ids by a seed, so many under way at a time. Prints {"load", "called", "arrivals", "version",
"how"} for each: of every request when it was made, and the time and the tokens of each of its deltas, in seconds of one
clock.
"""

import asyncio
import importlib.util
import json
import os
import shutil
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

WARM_TOKENS = 16
"""Of each prompt of the warm run, as for ours."""


async def measure(engine, params, loads: list[dict], vocabulary: int, version: str, how: str) -> None:
    numbers = iter(range(1 << 30))

    async def one(prompt: list[int], tokens: int) -> tuple[float, list[tuple[float, int]]]:
        arrivals, called = [], time.perf_counter()
        async for out in engine.generate(dict(prompt_token_ids=prompt), params(tokens), str(next(numbers))):
            if out.outputs[0].token_ids:
                arrivals.append((time.perf_counter(), len(out.outputs[0].token_ids)))
        return called, arrivals

    async def closed_loop(prompts: list[list[int]], tokens: int, concurrency: int) -> list:
        left, done = iter(prompts), []

        async def one_at_a_time() -> None:
            for prompt in left:
                done.append(await one(prompt, tokens))

        await asyncio.gather(*(one_at_a_time() for _ in range(concurrency)))
        return done

    for load in loads:
        most, size = load["concurrency"], load["input_tokens"]
        of = lambda count, stage: np.random.default_rng((most, stage)).integers(0, vocabulary, (count, size)).tolist()
        await closed_loop(of(most, 0), WARM_TOKENS, most)
        done = await closed_loop(of(load["requests"], 1), load["output_tokens"], most)
        found = dict(
            load=load, called=[called for called, _ in done], arrivals=[arrivals for _, arrivals in done],
            version=version, how=how,
        )  # fmt: skip
        print(json.dumps(found), flush=True)


def main(request: dict) -> None:
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
    os.environ.setdefault("VLLM_HOST_IP", "127.0.0.1")
    kernels = {}
    if importlib.util.find_spec("flashinfer") is None:  # an extra of vLLM's, which greedy decode does not need
        os.environ.setdefault("VLLM_USE_FLASHINFER_SAMPLER", "0")
        kernels = dict(kernel_config=dict(enable_flashinfer_autotune=False, enable_cutedsl_warmup=False))
    import torch
    import vllm
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.sampling_params import RequestOutputKind
    from vllm.usage.usage_lib import UsageContext
    from vllm.v1.engine.async_llm import AsyncLLM

    folder = Path(tempfile.mkdtemp())
    shutil.copy(request["config"], folder / "config.json")
    loads = request["loads"]
    arguments = AsyncEngineArgs(
        model=str(folder), load_format="dummy", skip_tokenizer_init=True, dtype="bfloat16", seed=0,
        max_model_len=max(load["input_tokens"] + load["output_tokens"] for load in loads) + 16,
        max_num_seqs=max(load["concurrency"] for load in loads), gpu_memory_utilization=0.8,
        generation_config="vllm", disable_log_stats=True, quantization=request["quantization"], **kernels,
    )  # fmt: skip
    version = f"{vllm.__version__}, torch {torch.__version__}"
    how = "compiled, CUDA graphs, defaults of its server, engine in a child process"
    how += f", its own {request['quantization']} of weights and activations" if request["quantization"] else ""
    vocabulary = json.loads(Path(request["config"]).read_text())["vocab_size"]

    def params(tokens: int):
        return vllm.SamplingParams(
            temperature=0.0, max_tokens=tokens, ignore_eos=True, detokenize=False, output_kind=RequestOutputKind.DELTA
        )

    async def all_of_it() -> None:
        engine = AsyncLLM.from_engine_args(arguments, usage_context=UsageContext.OPENAI_API_SERVER)
        try:
            await measure(engine, params, loads, vocabulary, version, how)
        finally:
            engine.shutdown()

    asyncio.run(all_of_it())


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
