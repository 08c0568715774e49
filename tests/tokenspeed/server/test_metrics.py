"""/metrics: what requests have done, under names that dashboards query."""

import json
import re
import time
from pathlib import Path

import httpx2 as httpx
import jax
import pytest
from prometheus_client.parser import text_string_to_metric_families

from tokenspeed.models import memory

pytestmark = pytest.mark.slow

HOST = "engine_step_host_seconds"
LABELS = dict(model_name="tokenspeed")


def values(served) -> dict[str, float]:
    """Of all series by their names, those with more labels added up."""
    response = httpx.get(f"{served.url}/metrics")
    assert response.headers["content-type"].startswith("text/plain")
    found: dict[str, float] = {}
    for family in text_string_to_metric_families(response.text):
        for sample in family.samples:
            if sample.name.startswith("tokenspeed:") and "le" not in sample.labels:
                assert LABELS.items() <= sample.labels.items()
                found[sample.name] = found.get(sample.name, 0.0) + sample.value
    return {name.removeprefix("tokenspeed:"): value for name, value in found.items()}


def test_a_request_is_counted(served):
    before = values(served)
    found = served.post("/v1/completions", prompt="Once upon a time", max_tokens=9, n=2, temperature=0.9).json()
    after = values(served)
    grew = lambda name: after[name] - before.get(name, 0.0)
    usage = found["usage"]
    assert grew("prompt_tokens_total") == usage["prompt_tokens"]
    assert grew("generation_tokens_total") == usage["completion_tokens"]
    assert grew("request_success_total") == 2
    assert grew("time_to_first_token_seconds_count") == grew("request_queue_time_seconds_count") == 2
    assert grew("e2e_request_latency_seconds_count") == 1
    assert 0 < grew("inter_token_latency_seconds_count") <= usage["completion_tokens"]
    spans = ("queue", "prefill", "decode")
    assert sum(grew(f"request_{span}_time_seconds_sum") for span in spans) <= 2 * grew(
        "e2e_request_latency_seconds_sum"
    )
    assert grew("engine_steps_total") > 0 and grew("engine_host_seconds_total") > 0
    assert after["num_requests_running"] == after["num_requests_waiting"] == after["kv_cache_usage_perc"] == 0


def test_what_is_always_there(served):
    names = (
        "num_requests_running", "num_requests_waiting", "kv_cache_usage_perc", "prefix_cache_queries_total",
        "prefix_cache_hits_total", "num_preemptions_total", "admission_rejections_total", "compiled_programs",
    )  # fmt: skip
    assert set(names) <= values(served).keys()


def test_the_share_of_the_ceiling(served):
    before = values(served)
    body = dict(prompt="Once upon a time", max_tokens=60, ignore_eos=True)
    assert served.post("/v1/completions", **body).status_code == 200
    after = values(served)
    assert after["read_ceiling_bytes_per_second"] == 2e9
    steps, seconds, read = (
        after[f"{name}_total"] - before[f"{name}_total"]
        for name in ("decode_steps", "decode_step_seconds", "decode_read_bytes")
    )
    model = served.llm.model
    assert 30 < steps < 64 and read / steps > memory.decode_bytes(model.config, dtype=str(model.dtype), context=1)
    # The last steps that are looked at are most of these.
    assert 0.1 < after["decode_read_ceiling_ratio"] / (read / seconds / 2e9) < 10
    text = httpx.get(f"{served.url}/metrics").text
    assert re.search(r'decode_read_ceiling_ratio\{model_name="tokenspeed",source="given"\}', text)


def test_the_hosts_time_of_a_step(served):
    before = values(served)
    served.post("/v1/completions", prompt="One", max_tokens=20, ignore_eos=True)
    after = values(served)
    count, seconds = (after[name] - before[name] for name in (f"{HOST}_count", f"{HOST}_sum"))
    assert count > 5 and 0 < seconds / count < 1.0


def test_compilations_since_it_was_ready(served):
    name = "compilations_since_ready_total"
    before = values(served)[name]
    served.post("/v1/completions", prompt="Two", max_tokens=5, n=2, logprobs=1)
    assert values(served)[name] == before
    jax.jit(lambda x: x * 3 + time.time())(1.0)
    assert values(served)[name] > before


def test_a_dashboard_asks_for_what_there_is(served):
    """Of Grafana; a query may name a series before anything is in it."""
    board = json.loads((Path(__file__).parents[3] / "configs/grafana.json").read_text())
    there = set()
    for family in text_string_to_metric_families(httpx.get(f"{served.url}/metrics").text):
        suffixes = dict(counter=["_total"], histogram=["_bucket", "_sum", "_count"]).get(family.type, [""])
        there |= {family.name + suffix for suffix in suffixes}
    queries = [target["expr"] for panel in board["panels"] for target in panel["targets"]]
    queries += [one["query"] for one in board["templating"]["list"]]
    asked = {name for query in queries for name in re.findall(r"tokenspeed:\w+", query)}
    assert asked <= there and len(asked) > 15
    assert len({panel["id"] for panel in board["panels"]}) == len(board["panels"])
