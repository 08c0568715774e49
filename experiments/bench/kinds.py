"""The kinds of records, and the fields of each: the only place where they are named, but for `served_kinds`."""

from experiments.bench.fields import (
    AMOUNT,
    COUNT,
    FLAG,
    NUMBER,
    POSITIVE,
    SIZE,
    TEXT,
    TILE_COUNTS,
    TILES,
    a_list,
    table,
)
from experiments.bench.kind import (
    CALL_US,
    CASE,
    CASE_NEEDS,
    ERRORS,
    KV_DTYPE,
    PAGE_SIZE,
    PREFILL_BACKEND,
    RATE,
    STATUS,
    STEP,
    STEP_KEY,
    STEP_MS,
    STEP_NEEDS,
    TILE_KEY,
    Kind,
)
from experiments.bench.served_kinds import SERVED_KINDS

KINDS = {
    "tile": Kind(
        "a tile of an op, checked and timed on a GPU",
        CASE | STATUS | ERRORS | CALL_US | RATE
        | dict(
            calls=(COUNT, "calls of a sample's chain"),
            xla_us=(POSITIVE, "what XLA's step takes for the same"),
            compile_s=(AMOUNT, "seconds to compile a single call"),
        ),
        TILE_KEY,
        needed=(*CASE_NEEDS, "tiles"),
        figures=(*ERRORS, "median_us", "p10_us", "p90_us", *RATE),
    ),
    "tile_in_layer": Kind(
        "a tile of an op among the other launches of a decoder layer",
        CASE | STATUS
        | dict(
            layer_us=(POSITIVE, "median of a layer"),
            layer_p10_us=(POSITIVE, "10th percentile"),
            layer_p90_us=(POSITIVE, "90th percentile"),
            samples=(COUNT, "how many"),
            incumbent=(FLAG, "whether it is what the kernel would use by itself"),
            chosen=(FLAG, "whether it was the best by more than the noise"),
            layer_tiles=(table(TILES), "of the other ops, by op"),
            layer_context=(SIZE, "positions in the cache"),
            prefetch_bytes=(COUNT, "of the next weight that each kernel asks for early"),
            ceiling_gbps=RATE["ceiling_gbps"],
        ),
        TILE_KEY,
        needed=(*CASE_NEEDS, "tiles"),
        figures=("layer_us", "layer_p10_us", "layer_p90_us", "layer_tiles", "layer_context", "incumbent", "chosen"),
    ),
    "interpreted_tile": Kind(
        "a tile run by Pallas's interpreter against the reference: right or wrong, no time",
        CASE | STATUS | ERRORS,
        TILE_KEY,
        needed=(*CASE_NEEDS, "tiles"),
        figures=tuple(ERRORS),
    ),
    "lowered_tile": Kind(
        "a tile lowered for CUDA and not run",
        CASE | STATUS
        | dict(
            feasible=(table(TEXT), "device -> why it cannot run the tile, '' where it can"),
            compile_s=(AMOUNT, "seconds to lower it"),
        ),
        TILE_KEY,
        needed=(*CASE_NEEDS, "tiles"),
    ),
    "feasible_tiles": Kind(
        "how many tiles of a search space each GPU can run; nothing was run",
        CASE | STATUS | dict(feasible=(TILE_COUNTS, "device -> feasible, of, reasons")),
        TILE_KEY,
        needed=(*CASE_NEEDS, "feasible"),
    ),
    "xla_on_cpu": Kind(
        "XLA's implementation of an op on this processor",
        CASE | STATUS
        | dict(
            xla_us=(POSITIVE, "median of one call"),
            samples=CALL_US["samples"],
            calls=(COUNT, "calls of a sample's chain"),
            bytes=RATE["bytes"],
            ceiling_gbps=RATE["ceiling_gbps"],
        ),
        TILE_KEY,
        needed=CASE_NEEDS,
        figures=("xla_us", "bytes", "ceiling_gbps"),
    ),
    "layer": Kind(
        "the launches of a decoder layer, chained over all layers of a model",
        STEP | STATUS | CALL_US | RATE
        | dict(
            page_size=PAGE_SIZE,
            prefetch_bytes=(COUNT, "of the next weight that each kernel asks for early"),
            tiles=(table(TILES), "by op"),
            launches=(COUNT, "of a layer"),
            beyond_bytes_us_per_launch=(NUMBER, "time less that of the bytes at the ceiling, by the launches"),
            difference_from_xla=(NUMBER, "RMS of the difference of the results, over their RMS"),
        ),
        (*STEP_KEY, "page_size", "implementation", "prefetch_bytes"),
        needed=(*STEP_NEEDS, "page_size", "median_us", "p10_us", "p90_us", "percent_of_ceiling"),
    ),
    "decode": Kind(
        "a whole greedy decode step, chained on the device",
        STEP | STATUS | STEP_MS | RATE
        | dict(
            page_size=PAGE_SIZE,
            kv_dtype=KV_DTYPE,
            xla_ms_per_token=(POSITIVE, "XLA's, of the same run, where that counts"),
            tokens_per_s=(AMOUNT, "of all sequences together"),
            percent_of_datasheet=(AMOUNT, "achieved_gbps of the datasheet's bandwidth"),
            floor_ms=(AMOUNT, "bytes at ceiling_gbps"),
            compilations=(COUNT, "how often each program was compiled"),
            ms_by_compilation=(a_list(POSITIVE), "the median of each"),
            tokens_agree_with_xla=(COUNT, "of tokens_checked, those that XLA draws too"),
        ),
        (*STEP_KEY, "page_size", "kv_dtype", "implementation"),
        needed=(*STEP_NEEDS, "page_size", "kv_dtype", "bytes", "ceiling_gbps", "floor_ms"),
        figures=("ms_per_token", "ms_p5", "ms_p95", "tokens_per_s", "percent_of_ceiling", "steps"),
    ),
    "generate": Kind(
        "what `python -m tokenspeed generate` prints of itself, prefill included",
        STEP | STATUS
        | dict(
            ttft_ms=(POSITIVE, "from the call to the first token"),
            tokens_per_s=(AMOUNT, "of decode, a sequence, after its first token"),
            output_tokens=(COUNT, "drawn"),
            tokens_checked=(COUNT, "drawn, the same in two runs"),
            generate_command=(TEXT, "the command whose figures these are"),
        )
        | RATE,
        (*STEP_KEY, "implementation"),
        needed=STEP_NEEDS,
        figures=("ttft_ms",),
    ),
    "prefill": Kind(
        "prompts up to their first token, or a chunk of tokens that begins behind others",
        {name: STEP[name] for name in ("model", "dtype", "batch", "implementation")}
        | STATUS
        | dict(
            prefill_backend=PREFILL_BACKEND,
            tokens=(SIZE, "of each sequence, those before them not counted"),
            start=(COUNT, "positions in the cache before them; 0: whole prompts, by `LLM.generate`"),
            ms=(POSITIVE, "median: of prompts from the call to its return with a token each, of a chunk the device's"),
            ms_p5=(POSITIVE, "5th percentile over the samples"),
            ms_p95=(POSITIVE, "95th percentile"),
            samples=(COUNT, "how many; of a chunk each the mean of several calls"),
            flop=(COUNT, "operations of products and attention, of prompts the head of the last token included"),
            tflops=(AMOUNT, "flop by ms, 1e12 a second"),
            bytes=(POSITIVE, "that must move, each once"),
            ceiling_gbps=RATE["ceiling_gbps"],
            floor_ms=(AMOUNT, "bytes at ceiling_gbps, or flop at the datasheet's peak where that is longer"),
            products_ms=(POSITIVE, "a chunk's products alone, by XLA, of all layers"),
            attention_ms=(POSITIVE, "its attention alone, on what was gathered"),
            gather_ms=(POSITIVE, "its gathers from the cache alone; null where there are none"),
            tokens_checked=(COUNT, "first tokens of different prompts, each the same in every run"),
            tokens_agree_with_xla=(COUNT, "of tokens_checked, those by XLA's attention too; null: not compared"),
        ),
        ("device", "model", "dtype", "batch", "tokens", "start", "implementation", "prefill_backend"),
        needed=(
            "model", "dtype", "batch", "tokens", "start", "implementation", "prefill_backend", "status", "flop",
            "bytes", "ceiling_gbps", "floor_ms",
        ),
        figures=("ms", "ms_p5", "ms_p95", "tflops"),
    ),
    "ablation": Kind(
        "a decode step without one of the things that make it fast",
        STEP | STATUS | STEP_MS
        | dict(
            ablation=(TEXT, "what was left out; '' is the step as it ships"),
            strategy=(TEXT, "what kind of thing that is"),
            without=(TEXT, "what takes its place"),
            tried=(FLAG, "not in the shipped step: what is timed is the step with it"),
            base_ms=(POSITIVE, "the step as it ships, in this run"),
            gain_us=(NUMBER, "what it gives the step"),
            predicted_us=(NUMBER, "by arithmetic, before"),
            predicted_bytes=(NUMBER, "bytes more without it"),
            predicted_launches=(COUNT, "launches more without it"),
            drift=(AMOUNT, "RMS of logits less those in float64, over the RMS of those"),
            drift_max=(AMOUNT, "the largest difference"),
            drift_kl=(NUMBER, "mean Kullback-Leibler divergence"),
            tokens_as_shipped=(COUNT, "of tokens_checked, those that the shipped step draws too"),
            floor_ms=(AMOUNT, "bytes of the step at ceiling_gbps"),
            ceiling_gbps=RATE["ceiling_gbps"],
        ),
        (*STEP_KEY, "ablation"),
        needed=(*STEP_NEEDS, "ablation", "tried", "ceiling_gbps"),
        figures=("ms_per_token", "ms_p5", "ms_p95"),
    ),
    "counters": Kind(
        "what the kernels of one name move in a decode step, by the GPU's counters",
        STEP | STATUS
        | dict(
            ablation=(TEXT, "what was left out; '' is the step as it ships"),
            kernel=(TEXT, "name"),
            calls=(COUNT, "in a step"),
            read_bytes=(AMOUNT, "from memory, all calls together"),
            written_bytes=(AMOUNT, "to memory"),
            alone_us=(AMOUNT, "of all calls, each alone under the profiler"),
            step_bytes=(POSITIVE, "that the whole step must read"),
            step_read_bytes=(AMOUNT, "that it did read"),
        ),
        (*STEP_KEY, "implementation", "ablation", "kernel"),
        needed=(*STEP_NEEDS, "ablation", "kernel", "read_bytes", "written_bytes", "step_bytes", "step_read_bytes"),
    ),
    "accuracy": Kind(
        "a model with quantised weights against the same in float32, on a text",
        {name: STEP[name] for name in ("model", "dtype", "implementation")}
        | STATUS
        | dict(
            format=(TEXT, "of the projections: int8, fp8 or int4, -gN for groups of N inputs, -asym for zero points"),
            head=(TEXT, "the format of the head; 'none': not quantised"),
            text=(TEXT, "'stories', which are made up, or the name of a file"),
            sequences=(SIZE, "of the text"),
            length=(SIZE, "positions of a sequence"),
            positions=(SIZE, "of all sequences"),
            kl_mean=(AMOUNT, "nats: mean divergence (Kullback-Leibler) from the unquantised model"),
            kl_p99=(AMOUNT, "99th percentile over the positions"),
            top1=(AMOUNT, "share of positions with the same argmax, 0 to 1"),
            top1_float64=(AMOUNT, "the same, both models in float64"),
            near_ties=(AMOUNT, "share of positions whose two best tokens, unquantised, are within 0.01 nats"),
            top1_clear=(AMOUNT, "top1 of the other positions"),
            margin_differing=(AMOUNT, "nats: median between the two best, unquantised, where the argmax differs"),
            perplexity=(POSITIVE, "of the text"),
            perplexity_reference=(POSITIVE, "of the text, by the unquantised model"),
            layer_errors=(a_list(AMOUNT), "after each layer, of the residual stream: RMS of the difference over RMS"),
            bits_per_weight=(POSITIVE, "of the quantised projections, scales and zero points included"),
            model_bytes=(SIZE, "of all weights, those not quantised in the checkpoint's dtype"),
            reference_bytes=(SIZE, "of the unquantised model, in the same dtype"),
        ),
        ("model", "format", "head", "text"),
        needed=("model", "status", "format", "head", "text", "sequences", "length"),
        figures=(
            "positions", "kl_mean", "kl_p99", "top1", "top1_float64", "near_ties", "perplexity",
            "perplexity_reference", "layer_errors", "bits_per_weight", "model_bytes", "reference_bytes",
        ),
    ),
    "cache_layout": Kind(
        "reading keys and values in one order of the cache's axes",
        dict(model=CASE["model"], context=CASE["context"], page_size=(SIZE, "positions"), layout=(TEXT, "of axes"))
        | STATUS | CALL_US | dict(bytes=RATE["bytes"], achieved_gbps=RATE["achieved_gbps"]),
        ("device", "model", "context", "page_size", "layout"),
        needed=("model", "status", "context", "page_size", "layout", "median_us", "p10_us", "p90_us"),
    ),
    "weight_layout": Kind(
        "reading a weight in one order of its bytes",
        dict(model=CASE["model"], op=CASE["op"], layout=(TEXT, "of the bytes"), tiles=CASE["tiles"])
        | STATUS | CALL_US | dict(bytes=RATE["bytes"], achieved_gbps=RATE["achieved_gbps"]),
        ("device", "model", "op", "layout"),
        needed=("model", "status", "op", "layout", "median_us", "p10_us", "p90_us"),
    ),
    **SERVED_KINDS,
}  # fmt: skip
