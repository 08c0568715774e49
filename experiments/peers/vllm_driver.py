"""Decode steps of vLLM's offline LLM class on random weights: run by `python -m experiments.peers --engine=vllm`.

Takes a request as JSON and prints {"batch", "ms", "version", "how"} for each batch, `ms` a list: the time of `steps` +
1 tokens less that of 1 token from the same prompts, by `steps`. Weights are bf16, which vLLM quantises itself where
`quantization` is not null.
"""

import importlib.util
import json
import os
import shutil
import sys
import tempfile
import time
from pathlib import Path


def main(request: dict) -> None:
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
    os.environ.setdefault("VLLM_HOST_IP", "127.0.0.1")
    if request["in_process"]:
        os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    kernels = {}
    if importlib.util.find_spec("flashinfer") is None:  # an extra of vLLM's, which greedy decode does not need
        os.environ.setdefault("VLLM_USE_FLASHINFER_SAMPLER", "0")
        kernels = dict(kernel_config=dict(enable_flashinfer_autotune=False, enable_cutedsl_warmup=False))
    import torch
    import vllm

    folder = Path(tempfile.mkdtemp())
    shutil.copy(request["config"], folder / "config.json")
    batches, context, steps = request["batches"], request["context"], request["steps"]
    sizes = sorted({1, 2, 4, 8, *batches})
    llm = vllm.LLM(
        model=str(folder), load_format="dummy", skip_tokenizer_init=True, dtype="bfloat16", seed=0,
        max_model_len=context + steps + 16, max_num_seqs=max(batches), gpu_memory_utilization=0.8,
        enable_prefix_caching=False, generation_config="vllm", quantization=request["quantization"],
        compilation_config=dict(cudagraph_capture_sizes=sizes, max_cudagraph_capture_size=max(sizes)),
        **kernels,
    )  # fmt: skip
    vocabulary = json.loads(Path(request["config"]).read_text())["vocab_size"]

    def seconds(batch: int, tokens: int, salt: int) -> float:
        prompts = [
            dict(prompt_token_ids=[(7919 * (i + 1) + 104729 * row + 31 * salt) % vocabulary for i in range(context)])
            for row in range(batch)
        ]
        params = vllm.SamplingParams(temperature=0.0, max_tokens=tokens, ignore_eos=True, detokenize=False)
        begin = time.perf_counter()
        outputs = llm.generate(prompts, params, use_tqdm=False)
        taken = time.perf_counter() - begin
        if any(len(output.outputs[0].token_ids) != tokens for output in outputs):
            raise RuntimeError("vLLM drew another number of tokens than was asked for")
        return taken

    how = f"compiled, CUDA graphs, {'in process' if request['in_process'] else 'engine in a child process'}"
    how += f", its own {request['quantization']} of weights and activations" if request["quantization"] else ""
    for batch in batches:
        seconds(batch, steps + 1, 0)
        ms = []
        for repeat in range(1, request["repeats"] + 1):
            short, long = seconds(batch, 1, repeat), seconds(batch, steps + 1, repeat)
            ms.append(1e3 * (long - short) / steps)
        found = dict(batch=batch, ms=ms, version=f"{vllm.__version__}, torch {torch.__version__}", how=how)
        print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
