"""The kinds of records of engines and servers under load, and the fields of each; see `kinds`."""

from experiments.bench.fields import (
    AMOUNT,
    COUNT,
    FLAG,
    NUMBER,
    POSITIVE,
    SIZE,
    TEXT,
    one_of,
    table,
)
from experiments.bench.kind import (
    PREFILL_BACKEND,
    STATUS,
    STEP,
    STEP_KEY,
    STEP_NEEDS,
    Kind,
)

BATCHED_TOKENS = COUNT, "that a step computes at most, of prompts and decode; 0: as the engine chooses"
BY_SERVED = FLAG, "whether it had the programs of a served model"
SERVED = dict(
    model=STEP["model"],
    dtype=STEP["dtype"],
    implementation=STEP["implementation"],
    prefill_backend=PREFILL_BACKEND,
    max_batch=(SIZE, "sequences that the engine runs at a time"),
    max_context=(SIZE, "positions of a sequence"),
    max_batched_tokens=BATCHED_TOKENS,
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
_SERVED_KEY = ("device", "model", "dtype", "implementation", "prefill_backend", "max_batched_tokens")
_SERVED_NEEDS = (*_SERVED_KEY[1:], "max_batch", "max_context", "status")
_SERVED_FIGURES = ("kv_pages", "programs", "ready_s", "compiled_after_ready", "preemptions")

SERVED_KINDS = {
    "soak": Kind(
        "random requests through the engine, each against itself alone",
        {name: STEP[name] for name in ("dtype", "batch", "implementation")}
        | STATUS
        | dict(
            batch_invariant=(FLAG, "whether the engine was to be"),
            served=BY_SERVED,
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
        (*STEP_KEY, "engine", "date"),
        needed=(*STEP_NEEDS, "engine", "engine_version", "how", "ms_per_token", "ms_min", "ms_max"),
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
}  # fmt: skip
