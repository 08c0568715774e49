"""Requests to vLLM's offline LLM class, so many at a time, on random bf16 weights: beside `experiments.throughput`.

    python experiments/peers/vllm_throughput_driver.py '{"config": "configs/models/llama-3.2-1b.json",
        "concurrency": 64, "requests": 128, "input_tokens": 1024, "output_tokens": 128}'

prints {"seconds", "output_tokens_per_s", "version"}: all requests are there from the beginning, of different random
prompts, and the engine takes `concurrency` of them at a time (max_num_seqs).
"""

import importlib.util
import json
import os
import random
import shutil
import sys
import tempfile
import time
from pathlib import Path


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

    folder = Path(tempfile.mkdtemp())
    shutil.copy(request["config"], folder / "config.json")
    vocabulary = json.loads(Path(request["config"]).read_text())["vocab_size"]
    concurrency, inputs, outputs = request["concurrency"], request["input_tokens"], request["output_tokens"]
    llm = vllm.LLM(
        model=str(folder), load_format="dummy", skip_tokenizer_init=True, dtype="bfloat16", seed=0,
        max_model_len=inputs + outputs, max_num_seqs=concurrency, gpu_memory_utilization=0.8,
        enable_prefix_caching=True, generation_config="vllm", **kernels,
    )  # fmt: skip
    draw = random.Random(0)

    def seconds(count: int) -> float:
        prompts = [dict(prompt_token_ids=draw.choices(range(vocabulary), k=inputs)) for _ in range(count)]
        params = vllm.SamplingParams(temperature=0.0, max_tokens=outputs, ignore_eos=True, detokenize=False)
        begin = time.perf_counter()
        found = llm.generate(prompts, params, use_tqdm=False)
        taken = time.perf_counter() - begin
        if any(len(output.outputs[0].token_ids) != outputs for output in found):
            raise RuntimeError("vLLM drew another number of tokens than was asked for")
        return taken

    seconds(concurrency)
    taken = seconds(request["requests"])
    said = dict(
        seconds=taken,
        output_tokens_per_s=request["requests"] * outputs / taken,
        version=f"{vllm.__version__}, torch {torch.__version__}",
    )
    print(json.dumps(said), flush=True)


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
