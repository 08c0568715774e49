"""The GPU's counters: how the profiler is started, and what is read from its table."""

import pathlib
import subprocess

import pytest

from experiments.ablation import counters
from experiments.bench import log
from experiments.bench.errors import ResultsError

UNITS = {"Kernel Name": "", counters.READ: "Mbyte", counters.WRITTEN: "Kbyte", counters.TIME: "us"}


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    """The command sets this for itself and what it starts."""
    monkeypatch.setenv("XLA_PYTHON_CLIENT_PREALLOCATE", "false")


def launched(name, read="0", written="0", us="0"):
    return dict(zip(UNITS, (name, read, written, us), strict=True))


def test_kernels_are_summed_by_name():
    table = [UNITS, launched("qkv(int)", "1.5", "2", "7"), launched("head", "1,000.0", "0", "250"),
             launched("qkv(int)", "0.5", "1", "6")]  # fmt: skip
    head, qkv = counters.kernels(table)
    assert head["kernel"] == "head" and head["read_bytes"] == 10**9
    assert qkv == dict(kernel="qkv", calls=2, read_bytes=2 * 10**6, written_bytes=3000, alone_us=13)


def test_several_steps_are_told_apart():
    names = ["before(float*)", "mark(float*)", "qkv", "head", "mark(float*)", "loop_add_fusion"]
    steps = counters.by_step([UNITS, *map(launched, names)])
    assert [[line["Kernel Name"] for line in step] for step in steps] == [["", "qkv", "head"], ["", "loop_add_fusion"]]


@pytest.fixture
def commands(monkeypatch):
    """Stands in for what is started: the commands, and where each had its programs. `ncu` writes the table given."""

    def start(*table, status=0, said=""):
        ran = []

        def run(command, *, env, **how):
            ran.append((command, env["JAX_COMPILATION_CACHE_DIR"]))
            if command[0] == "ncu":
                text = "\n".join(["==PROF== noise", *table, ""])
                pathlib.Path(command[command.index("--log-file") + 1]).write_text(text)
            return subprocess.CompletedProcess(command, status, "", said)

        monkeypatch.setattr(subprocess, "run", run)
        return ran

    return start


def test_the_profiler_follows_steps_that_were_compiled_before(commands):
    """First the steps alone, then the same below the profiler, with one cache of programs."""
    ran = commands('"Kernel Name","a"', '"","byte"', '"mark","1"')
    options = counters.Options(models=("llama-3.2-1b",), ablations=("argmax in the head",), context=99, batch=2)
    assert [line["Kernel Name"] for line in counters.profiled("llama-3.2-1b", options)] == ["", "mark"]
    (plain, cache), (profiled, same) = ran
    assert cache == same and profiled[-len(plain) :] == plain and profiled[0] == "ncu" != plain[0]
    assert {
        "--profiled", "--models=llama-3.2-1b", "--ablations=argmax in the head", "--context=99", "--batch=2",
        "--dtype=bf16",
    } <= set(plain)  # fmt: skip


def test_what_is_started_reads_its_options_back(commands, monkeypatch):
    """The same options, and only one step below the profiler."""
    options = counters.Options(models=("llama-3.2-1b",), context=99, batch=2, dtype="f32")
    ran, seen = commands('"Kernel Name","a"', '"","byte"', '"mark","1"'), []
    counters.profiled("llama-3.2-1b", options)
    monkeypatch.setattr(counters, "step", seen.append)
    monkeypatch.setattr(counters, "needed_gpu", lambda who: None)
    arguments = ran[0][0][ran[0][0].index("experiments.ablation.counters") + 1 :]
    assert counters.main(arguments) == 0
    (again,) = seen
    assert again.profiled and (again.models, again.context, again.batch, again.dtype, again.ablations) == (
        options.models, options.context, options.batch, options.dtype, options.ablations,
    )  # fmt: skip


def test_steps_that_fail_are_not_profiled(commands):
    ran = commands(status=1, said="it broke\nfor this reason\n")
    with pytest.raises(ResultsError, match=r"llama-3\.2-1b: the steps without the profiler: for this reason"):
        counters.profiled("llama-3.2-1b", counters.Options())
    assert len(ran) == 1


def test_an_empty_table_is_no_result(commands):
    commands('"Kernel Name","a"')
    with pytest.raises(ResultsError, match=r"llama-3\.2-1b: the steps with it: "):
        counters.profiled("llama-3.2-1b", counters.Options())


ORIGIN = dict(device="NVIDIA H200", jax="0.11.2", sources="0123456789ab")


@pytest.fixture
def measured(monkeypatch, tmp_path):
    """The command on a GPU that is not there: (exit status, records)."""

    def run(*lines):
        monkeypatch.setattr(counters, "needed_gpu", lambda who: None)
        monkeypatch.setattr(counters.shutil, "which", lambda name: f"/bin/{name}")
        monkeypatch.setattr(counters.provenance, "collect", lambda command, *modules: ORIGIN)
        monkeypatch.setattr(counters, "in_path", lambda path: path)
        monkeypatch.setattr(counters, "profiled", lambda model, options: [UNITS, *lines])
        path = tmp_path / "records.jsonl"
        return counters.main(["--models=llama-3.2-1b", f"--results={path}"]), log.read(path)

    return run


def test_a_record_for_each_kernel_of_each_step(measured, capsys):
    """The shipped step, then that of XLA alone."""
    status, records = measured(
        launched("mark"), launched("qkv", "1"), launched("head", "2"), launched("mark"), launched("fusion", "9")
    )
    assert status == 0 and [(one["ablation"], one["kernel"], one["implementation"]) for one in records] == [
        ("", "head", "triton"), ("", "qkv", "triton"), ("all kernels", "fusion", "xla"),
    ]  # fmt: skip
    assert [one["step_read_bytes"] for one in records] == [3e6, 3e6, 9e6]
    assert {one["step_bytes"] for one in records} == {records[0]["step_bytes"]} and records[0]["step_bytes"] > 2e9
    assert "all kernels" in capsys.readouterr().out


def test_steps_that_are_missing_are_an_error(measured, capsys):
    assert measured(launched("mark"), launched("qkv", "1")) == (2, [])
    assert "expected the kernels of 2 steps, found 1" in capsys.readouterr().err


@pytest.mark.parametrize(
    "bad, message",
    [
        ("--models=gpt-2", "models: unknown 'gpt-2'"),
        ("--ablations=magic", "ablations: unknown 'magic'"),
        ("--batch=1", "the profiler needs an NVIDIA GPU, and there is none here"),
        ("--profiled", "the profiler needs an NVIDIA GPU, and there is none here"),
    ],
)
def test_bad_arguments_are_one_line(bad, message, capsys, monkeypatch):
    monkeypatch.setattr("jax.default_backend", lambda: "cpu")
    assert counters.main([bad]) == 2
    err = capsys.readouterr().err
    assert message in err and err.count("\n") == 1
