"""The kinds of records, and the fields of each: the only place where they are named."""

import dataclasses

from experiments.bench.fields import (
    AMOUNT,
    CLOCKS,
    COUNT,
    DTYPE,
    FLAG,
    NUMBER,
    POSITIVE,
    SIZE,
    STORED_KV,
    TEXT,
    TILE_COUNTS,
    TILES,
    Type,
    a_list,
    one_of,
    table,
)  # fmt: skip

Fields = dict[str, tuple[Type, str]]
"""name -> (type, meaning)"""

ORIGIN = dict(
    device=(TEXT, "jax's name of the device; of a processor followed by what it calls itself"),
    driver=(TEXT, "version of the GPU's driver"),
    clocks=(CLOCKS, "MHz of multiprocessors and memory when the run began, and the most they can have"),
    jax=(TEXT, "its version"),
    sources=(TEXT, "digest over the sources of all of this project that the record's measurement ran"),
    commit=(TEXT, "of this repository"),
    dirty=(FLAG, "whether tracked files differed from it"),
    command=(TEXT, "that made the record"),
    date=(TEXT, "when the record was made, UTC"),
)
PAGE_SIZE = COUNT, "positions of a page of the KV cache, 0 where that is contiguous; null where it has no part"
KV_DTYPE = (
    STORED_KV,
    "what keys and values are stored in: auto (as dtype says), fp8 or int8, or two of them as keys/values; null where "
    "the cache has no part",
)
CASE = dict(
    op=(TEXT, "the function of pallas_kernels"),
    model=(TEXT, "a name of configs/models"),
    rows=(SIZE, "activation rows of a call"),
    context=(SIZE, "positions of the KV cache; null where it has no part in the case"),
    page_size=PAGE_SIZE,
    kv_dtype=KV_DTYPE,
    dtype=(DTYPE, "bf16, f16 or f32, of weights, activations and cache"),
    tiles=(TILES, "as the op's dataclass of tiles"),
)
STATUS = dict(status=(TEXT, "'ok', or in words why there is no figure, or why it does not count"))
ERRORS = dict(
    error=(AMOUNT, "relative RMS error of the kernel, against the reference on float32 operands"),
    error_xla=(AMOUNT, "that of XLA on the operands as they are"),
)
CALL_US = dict(
    median_us=(POSITIVE, "of one call"),
    p10_us=(POSITIVE, "10th percentile over the samples"),
    p90_us=(POSITIVE, "90th percentile"),
    samples=(COUNT, "how many"),
)
RATE = dict(
    bytes=(POSITIVE, "that must move, each once"),
    achieved_gbps=(AMOUNT, "bytes by the time"),
    ceiling_gbps=(POSITIVE, "read ceiling of the device, measured in the same run"),
    percent_of_ceiling=(AMOUNT, "achieved_gbps of ceiling_gbps"),
)
STEP = dict(
    model=(TEXT, "a name of configs/models, or of the folder of a config.json"),
    dtype=(DTYPE, "bf16, f16 or f32, of weights, activations and cache"),
    batch=(SIZE, "sequences at a time"),
    context=(SIZE, "positions in the cache before the first step"),
    implementation=(TEXT, "of the kernels"),
)
STEP_MS = dict(
    ms_per_token=(POSITIVE, "median of one step, in which each sequence gets a token"),
    ms_p5=(POSITIVE, "5th percentile over the samples, which are means over the steps of a call"),
    ms_p95=(POSITIVE, "95th percentile"),
    samples=(COUNT, "how many calls"),
    steps=(COUNT, "of a call"),
    tokens_checked=(COUNT, "drawn by different sequences, each the same in every run"),
)
SERVED = dict(
    model=STEP["model"],
    dtype=STEP["dtype"],
    implementation=STEP["implementation"],
    prefill_backend=(one_of("cudnn", "xla"), "whose attention prefill ran"),
    max_batch=(SIZE, "sequences that the engine runs at a time"),
    max_context=(SIZE, "positions of a sequence"),
    kv_pages=(SIZE, "of the pool of keys and values"),
    programs=(SIZE, "that were compiled before the engine was ready"),
    ready_s=(AMOUNT, "seconds to make the engine, the weights being there"),
    compiled_after_ready=(COUNT, "events of JAX's compiler during the case"),
    preemptions=(COUNT, "sequences that lost their pages to others"),
)
LOAD = dict(
    concurrency=(SIZE, "requests under way at a time"),
    input_tokens=(SIZE, "of a prompt; prompts are random and differ"),
    output_tokens=(SIZE, "that each request draws"),
    requests=(SIZE, "in all"),
    seconds=(POSITIVE, "from the first call to the last token"),
    output_tokens_per_s=(AMOUNT, "of all requests together"),
    requests_per_s=(AMOUNT, "that ended"),
    ttft_ms_p50=(POSITIVE, "median from a request's call to its first token"),
    ttft_ms_p99=(POSITIVE, "99th percentile over the requests"),
    itl_ms_p50=(AMOUNT, "median between tokens: between two deltas of a request, by the second one's tokens"),
    itl_ms_p99=(AMOUNT, "99th percentile over the tokens"),
    whole_ms_p50=(POSITIVE, "median from a request's call to its last token"),
)


@dataclasses.dataclass(frozen=True)
class Kind:
    """A kind of record.

    Attributes:
        what: it says. fields: beside `kind` and those of ORIGIN.
        key: the fields that make two records the same measurement.
        needed: the fields that are never null, beside those of its origin. figures: nor these, where the status is ok.
    """

    what: str
    fields: Fields
    key: tuple[str, ...]
    needed: tuple[str, ...]
    figures: tuple[str, ...] = ()


_SOFTWARE = ("device", "jax", "sources")
_TILE_KEY = (*CASE, *_SOFTWARE)
_STEP_KEY = ("device", "model", "dtype", "batch", "context")
_CASE_NEEDS = ("op", "model", "rows", "dtype")
_STEP_NEEDS = (*STEP, "status")
_SERVED_KEY = ("device", "model", "dtype", "implementation", "prefill_backend")
_SERVED_NEEDS = (*_SERVED_KEY[1:], "max_batch", "max_context", "status")
_SERVED_FIGURES = ("kv_pages", "programs", "ready_s", "compiled_after_ready", "preemptions")
ORIGIN_NEEDS = (*_SOFTWARE, "date")
MADE_WITH = ("status", "op", "model")
"""What a record has from the beginning: the rest of what it needs comes before it is kept."""

KINDS = {
    "tile": Kind(
        "a tile of an op, checked and timed on a GPU",
        CASE | STATUS | ERRORS | CALL_US | RATE
        | dict(
            calls=(COUNT, "calls of a sample's chain"),
            xla_us=(POSITIVE, "what XLA's step takes for the same"),
            compile_s=(AMOUNT, "seconds to compile a single call"),
        ),
        _TILE_KEY,
        needed=(*_CASE_NEEDS, "tiles"),
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
        _TILE_KEY,
        needed=(*_CASE_NEEDS, "tiles"),
        figures=("layer_us", "layer_p10_us", "layer_p90_us", "layer_tiles", "layer_context", "incumbent", "chosen"),
    ),
    "interpreted_tile": Kind(
        "a tile run by Pallas's interpreter against the reference: right or wrong, no time",
        CASE | STATUS | ERRORS,
        _TILE_KEY,
        needed=(*_CASE_NEEDS, "tiles"),
        figures=tuple(ERRORS),
    ),
    "lowered_tile": Kind(
        "a tile lowered for CUDA and not run",
        CASE | STATUS
        | dict(
            feasible=(table(TEXT), "device -> why it cannot run the tile, '' where it can"),
            compile_s=(AMOUNT, "seconds to lower it"),
        ),
        _TILE_KEY,
        needed=(*_CASE_NEEDS, "tiles"),
    ),
    "feasible_tiles": Kind(
        "how many tiles of a search space each GPU can run; nothing was run",
        CASE | STATUS | dict(feasible=(TILE_COUNTS, "device -> feasible, of, reasons")),
        _TILE_KEY,
        needed=(*_CASE_NEEDS, "feasible"),
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
        _TILE_KEY,
        needed=_CASE_NEEDS,
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
        (*_STEP_KEY, "page_size", "implementation", "prefetch_bytes"),
        needed=(*_STEP_NEEDS, "page_size", "median_us", "p10_us", "p90_us", "percent_of_ceiling"),
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
        (*_STEP_KEY, "page_size", "kv_dtype", "implementation"),
        needed=(*_STEP_NEEDS, "page_size", "kv_dtype", "bytes", "ceiling_gbps", "floor_ms"),
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
        (*_STEP_KEY, "implementation"),
        needed=_STEP_NEEDS,
        figures=("ttft_ms",),
    ),
    "prefill": Kind(
        "prompts up to their first token, or a chunk of tokens that begins behind others",
        {name: STEP[name] for name in ("model", "dtype", "batch", "implementation")}
        | STATUS
        | dict(
            prefill_backend=SERVED["prefill_backend"],
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
    "soak": Kind(
        "random requests through the engine, each against itself alone",
        {name: STEP[name] for name in ("dtype", "batch", "implementation")}
        | STATUS
        | dict(
            batch_invariant=(FLAG, "whether the engine was to be"),
            seed=(COUNT, "of the requests"),
            requests=(SIZE, "random ones"),
            cancelled=(COUNT, "of them"),
            preemptions=(COUNT, "of all"),
            hit_tokens=(COUNT, "of prompts, whose pages were found"),
            evictions=(COUNT, "of known pages"),
            longest_wait_steps=(COUNT, "from arrival to first admission"),
            tokens=(COUNT, "of all requests"),
            tokens_checked=(COUNT, "of those that ended by themselves"),
            same_bits=(COUNT, "requests whose tokens, text and log-probabilities are those of the lone run"),
            first_tokens_differing=(COUNT, "requests whose tokens are not"),
            largest_gap=(AMOUNT, "between the scores of two such tokens; null: one could not be drawn at all"),
            short_requests=(COUNT, "of one token each, after which memory is as before"),
            process_grew_bytes=(NUMBER, "over nine tenths of these"),
            device_grew_bytes=(NUMBER, "the same"),
            flat=(FLAG, "whether that is nothing"),
        ),
        ("device", "implementation", "batch_invariant", "seed"),
        needed=("implementation", "batch_invariant", "seed", "status", "requests", "tokens_checked", "same_bits"),
    ),
    "throughput": Kind(
        "requests to an engine that serves, so many under way at a time, a new one for each that ends",
        SERVED | STATUS | LOAD
        | dict(
            steps=(COUNT, "that the engine dispatched, of one or several tokens each"),
            host_ms_per_step=(AMOUNT, "mean time of a step in which the host does not wait for the device's tokens"),
            wait_ms_per_step=(AMOUNT, "mean time in which it does"),
            prefix_hit_tokens=(COUNT, "of prompts, found in the cache; some only where a preempted one came back"),
            pool_occupancy=(AMOUNT, "the most of the pool's pages that were in use, 0 to 1"),
            tokens_checked=(COUNT, "drawn; each request as many as it was asked for"),
            tokens_alike=(COUNT, "of output_tokens, before the first that differs where a request is run again alone"),
        ),
        (*_SERVED_KEY, "concurrency", "input_tokens", "output_tokens"),
        needed=(*_SERVED_NEEDS, "concurrency", "input_tokens", "output_tokens", "requests"),
        figures=(
            *_SERVED_FIGURES, "seconds", "output_tokens_per_s", "requests_per_s", "ttft_ms_p50", "ttft_ms_p99",
            "itl_ms_p50", "itl_ms_p99", "whole_ms_p50", "steps", "host_ms_per_step", "wait_ms_per_step",
            "prefix_hit_tokens", "pool_occupancy", "tokens_checked", "tokens_alike",
        ),
    ),
    "long_prompt": Kind(
        "a long prompt that an engine is asked for while others decode, and a short one in the middle of it",
        SERVED | STATUS
        | dict(
            long_tokens=(SIZE, "of the long prompt"),
            background=(SIZE, "requests that decode meanwhile"),
            input_tokens=(SIZE, "of their prompts"),
            short_tokens=(SIZE, "of the short prompt"),
            repeats=(SIZE, "with other prompts"),
            itl_before_ms_p50=(AMOUNT, "median between tokens of the others before the long prompt arrives"),
            itl_during_ms_p99=(AMOUNT, "99th percentile between tokens of the others during its prefill"),
            long_ttft_ms=(POSITIVE, "median from its call to its first token"),
            short_ttft_ms=(POSITIVE, "the same of the short one"),
        ),
        (*_SERVED_KEY, "long_tokens", "background", "input_tokens", "short_tokens"),
        needed=(*_SERVED_NEEDS, "long_tokens", "background", "input_tokens", "short_tokens", "repeats"),
        figures=(*_SERVED_FIGURES, "itl_before_ms_p50", "itl_during_ms_p99", "long_ttft_ms", "short_ttft_ms"),
    ),
    "shared_prefix": Kind(
        "two requests to an engine, one after the other, whose prompts begin alike",
        SERVED | STATUS
        | dict(
            prefix_tokens=(SIZE, "that they share"),
            suffix_tokens=(SIZE, "that each has of its own"),
            repeats=(SIZE, "with other prefixes"),
            first_ttft_ms=(POSITIVE, "median from the first one's call to its first token"),
            second_ttft_ms=(POSITIVE, "the same of the second"),
            prefix_hit_tokens=(COUNT, "of all prompts, found in the cache"),
        ),
        (*_SERVED_KEY, "prefix_tokens", "suffix_tokens"),
        needed=(*_SERVED_NEEDS, "prefix_tokens", "suffix_tokens", "repeats"),
        figures=(*_SERVED_FIGURES, "first_ttft_ms", "second_ttft_ms", "prefix_hit_tokens"),
    ),
    "peer": Kind(
        "a decode step of another engine, by its own loop",
        STEP | STATUS
        | dict(
            engine=(one_of("vllm", "torch"), "whose step it is"),
            engine_version=(TEXT, "of it, and of the torch below it"),
            how=(TEXT, "how it was run: compilation, graphs, attention"),
            ms_per_token=(POSITIVE, "median over the repeats"),
            ms_min=(POSITIVE, "the least"),
            ms_max=(POSITIVE, "the most"),
            samples=(COUNT, "repeats"),
            steps=(COUNT, "tokens that a repeat's time is the mean of"),
            tokens_per_s=(AMOUNT, "of all sequences together"),
        ),
        (*_STEP_KEY, "engine", "date"),
        needed=(*_STEP_NEEDS, "engine", "engine_version", "how", "ms_per_token", "ms_min", "ms_max"),
    ),
    "peer_load": Kind(
        "requests to another engine, so many under way at a time, a new one for each that ends",
        {name: STEP[name] for name in ("model", "dtype", "implementation")}
        | STATUS
        | dict(
            engine=(one_of("vllm", "torch"), "whose engine it is"),
            engine_version=(TEXT, "of it, and of the torch below it"),
            how=(TEXT, "how it was run: compilation, graphs, limits of a step"),
        )
        | LOAD,
        ("device", "model", "dtype", "engine", "concurrency", "input_tokens", "output_tokens", "date"),
        needed=(
            "model", "dtype", "status", "engine", "engine_version", "how", "concurrency", "input_tokens",
            "output_tokens", "requests", "seconds", "output_tokens_per_s",
        ),
    ),
    "serve": Kind(
        "chats with a server over HTTP, by any address",
        STATUS
        | dict(
            endpoint=(TEXT, "the name that the command gave it"),
            model=(TEXT, "that was asked for"),
            mix=(one_of("chat", "long", "both"), "of prompts; of 'both' the figures are those of chats"),
            arrivals=(one_of("poisson", "bursty", "closed"), "of requests"),
            rate=(POSITIVE, "requests a second, of an open loop"),
            concurrency=(SIZE, "requests under way at a time, of a closed loop"),
            burst=(SIZE, "requests that arrive together, of bursty ones"),
            seed=(COUNT, "of arrivals and prompts"),
            input_unit=(one_of("tokens", "words"), "of prompts; tokens are those of a tokenizer that was given"),
            spread=(AMOUNT, "standard deviation of the logarithms of a chat's sizes"),
            chat_input=(SIZE, "median of a chat's prompt"),
            chat_output=(SIZE, "median of the tokens that a chat asks for"),
            long_input=(SIZE, "of a long prompt"),
            long_output=(SIZE, "tokens that it asks for"),
            long_every_s=(POSITIVE, "seconds between long prompts, of 'both' in an open loop"),
            requests=(COUNT, "that were due after the warm-up"),
            errors=(COUNT, "of these, without those that were rejected"),
            rejected=(COUNT, "with status 429"),
            errors_by_kind=(table(COUNT), "kind -> requests, rejected ones too"),
            seconds=(AMOUNT, "from the end of the warm-up to the last answer, and no fewer than were to be measured"),
            requests_per_s=(AMOUNT, "that were answered"),
            output_tokens_per_s=(AMOUNT, "of all requests together"),
            prompt_tokens_mean=(AMOUNT, "as the server counts them; null: it does not"),
            template_tokens=(COUNT, "that every prompt has more than was asked, of the chat template; null: in words"),
            output_tokens_mean=(AMOUNT, "of a request"),
            counted_by=(TEXT, "what tells how many tokens there are: usage of every event, at the end, or the events"),
            tokens_per_event_mean=(AMOUNT, "tokens by the events that brought any"),
            tokens_at_once_mean=(AMOUNT, "tokens by the arrivals of any: events within 0.2 ms are one"),
            request_tokens_per_s_p50=(AMOUNT, "median rate of a request after its first token"),
            long_ttft_ms_p50=(AMOUNT, "median of the long prompts of 'both'"),
            ttft_ms_p95_without_long=(AMOUNT, "of 'both': of the same chats alone, in the same run"),
            ttft_p95_ratio=(AMOUNT, "of 'both': ttft_ms_p95 by that"),
            goodput_per_s=(AMOUNT, "requests a second that met the objective"),
            slo_ttft_ms=(POSITIVE, "objective: the first token within"),
            slo_tpot_ms=(POSITIVE, "and the mean of the others within"),
            late_ms_p99=(NUMBER, "how late the client sent; times are from when a request was due"),
            loop_lag_ms_p99=(NUMBER, "how late the client's event loop was"),
        )
        | {
            f"{span}_ms_p{percent}": (AMOUNT, f"{what}, percentile over the {them}")
            for span, what, them in (
                ("ttft", "to the first token", "requests"),
                ("tpot", "mean of a token after those that came first", "requests"),
                ("itl", "between two events", "gaps of all requests"),
                ("whole", "to the last token", "requests"),
            )
            for percent in (50, 90, 95, 99)
        },
        (
            "device", "endpoint", "model", "mix", "arrivals", "rate", "concurrency", "burst", "seed", "spread",
            "chat_input", "chat_output", "long_input", "long_output", "long_every_s",
        ),
        needed=("endpoint", "model", "mix", "arrivals", "seed", "status", "requests", "errors", "rejected"),
    ),
    "server_soak": Kind(
        "a server under many clients, some of which leave, stall or never finish what they send",
        STATUS
        | dict(
            clients=(SIZE, "at a time, as many as the server takes"),
            load_seconds=(POSITIVE, "for which they ask again where a stream ends"),
            leaving=(AMOUNT, "share of the streams that are left, 0 to 1"),
            cases=(SIZE, "different requests"),
            batch=(SIZE, "sequences at a time"),
            seed=(COUNT, "of the requests"),
            requests=(COUNT, "of the load"),
            finished=(COUNT, "of these, to their end"),
            left=(COUNT, "by their clients"),
            rejected=(COUNT, "with status 429"),
            errors=(COUNT, "whatever else went wrong"),
            same_as_alone=(COUNT, "of those that finished, the text of the same request alone"),
            seconds=(AMOUNT, "from the first request to the last token"),
            requests_per_s=(AMOUNT, "that finished"),
            output_tokens_per_s=(AMOUNT, "of all together"),
            ttft_ms_p50=(AMOUNT, "median to the first token, the queue included"),
            ttft_ms_p99=(AMOUNT, "99th percentile"),
            load_grew_bytes=(NUMBER, "the server's memory from the second quarter of the load to the last"),
            overfull_requests=(COUNT, "at once, more than the server takes"),
            overfull_rejected=(COUNT, "of these, each told after how long to come again"),
            slow_readers=(COUNT, "streams that are read some bytes at a time"),
            others_ms_p50=(AMOUNT, "median of a stream of eight clients, nobody else being there"),
            others_beside_slow_readers_ms_p50=(AMOUNT, "the same while slow readers are"),
            others_beside_fast_readers_ms_p50=(AMOUNT, "the same while others read the same streams at once"),
            half_open=(COUNT, "connections that have sent half a request"),
            half_open_held=(COUNT, "of these, that the server kept until they were closed"),
            others_beside_half_open_ms_p50=(AMOUNT, "as others_ms_p50, while they are there"),
            one_token=(COUNT, "requests of one token, after which memory is as before"),
            one_token_per_s=(AMOUNT, "of them"),
            one_token_early_s=(AMOUNT, "seconds of the second to the fourth tenth of these"),
            one_token_late_s=(AMOUNT, "of the last three"),
            one_token_grew_bytes=(NUMBER, "the server's memory over nine tenths of these"),
            memory_bytes=(COUNT, "of the server at the end"),
            killed_streams=(COUNT, "whose clients were told when the server was killed; null: it was not"),
            ready_s=(POSITIVE, "seconds to start, with no compiled programs where it is killed later"),
            ready_cpu_s=(AMOUNT, "of processors until then"),
            ready_again_s=(POSITIVE, "seconds to start again with those of the first start"),
            ready_again_cpu_s=(AMOUNT, "of processors until then"),
        ),
        ("device", "clients", "load_seconds", "batch", "seed", "date"),
        needed=("clients", "load_seconds", "batch", "seed", "status"),
        figures=("requests", "finished", "same_as_alone", "one_token", "ready_s"),
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
        (*_STEP_KEY, "ablation"),
        needed=(*_STEP_NEEDS, "ablation", "tried", "ceiling_gbps"),
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
        (*_STEP_KEY, "implementation", "ablation", "kernel"),
        needed=(*_STEP_NEEDS, "ablation", "kernel", "read_bytes", "written_bytes", "step_bytes", "step_read_bytes"),
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
}  # fmt: skip
