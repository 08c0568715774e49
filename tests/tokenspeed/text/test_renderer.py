"""Hostile templates end, soon and in one line, and the next template does not notice."""

import signal
import threading

import pytest

from tokenspeed.text.errors import TokenizerError
from tokenspeed.text.renderer import Renderer

TIME, MEMORY, OUTPUT = "0.1 seconds of CPU time", "256 MiB of memory", "1000000 characters of output"
DEEP = "maximum recursion depth exceeded"


@pytest.fixture(scope="module")
def renderer():
    return Renderer(cpu_seconds=20, memory_bytes=256 << 20, output_chars=10**6)


@pytest.fixture(scope="module")
def hasty():
    return Renderer(cpu_seconds=0.1)


@pytest.mark.slow
@pytest.mark.parametrize(
    "template, limit",
    [
        ("{{ 'a' * 10**10 }}", MEMORY),
        ("{{ [0] * 10**10 }}", MEMORY),
        ("{{ '%1000000000d' % 1 }}", MEMORY),
        ("{{ '{:>10000000000}'.format('a') }}", MEMORY),
        ("{{ '%1000000000d'|format(1) }}", MEMORY),
        ("{{ 'a'|center(10**10) }}", MEMORY),
        ("{{ 'a\nb'|indent(10**10) }}", MEMORY),
        ("{{ range(99999)|join('a' * 10**6) }}", MEMORY),
        ("{{ ('a' * 10**6)|replace('', 'b' * 10**6) }}", MEMORY),
        ("{{ [1]|batch(10**9, 0)|list }}", MEMORY),
        ("{{ [[1]]|tojson(indent=10**10) }}", MEMORY),
        ("{{ 'a'.zfill(10**10) }}", MEMORY),
        ("{{ (1).to_bytes(10**10, 'big') }}", MEMORY),
        ("{% set n = namespace(s='a') %}{% for i in range(60) %}{% set n.s = n.s ~ n.s %}{% endfor %}", MEMORY),
        ("{{ 10 ** (10 ** 10) }}", TIME),
        ("{{ ('9' * 4000)|int ** 4000000 }}", TIME),
        ("{{ lipsum(n=10**9) }}", TIME),
        ("{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}", TIME),
        ("{% for i in range(10**9) %}{% endfor %}", "Range too big"),
        ("{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(30) }}", TIME),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", DEEP),
        ("{% for a in [[1]] recursive %}{{ loop([a]) }}{% endfor %}", DEEP),
        ("{{ " + "(" * 100_000 + "1" + ")" * 100_000 + " }}", DEEP),
        ("{% for a in b %}" * 60 + "{% endfor %}" * 60, "too many statically nested blocks"),
        ("{% include 'x' %}", "no loader"),
        ("{{ 'a' * 2000000 }}", OUTPUT),
        ("{{ raise_exception('a' * 10**6) }}", "aaa"),
    ],
)
def test_hostile_templates(renderer, hasty, template, limit):
    if limit == TIME:
        renderer = hasty
    with pytest.raises(TokenizerError) as error:
        renderer.render(template, {})
    text = str(error.value)
    assert text.startswith("chat_template: ") and limit in text and "\n" not in text and len(text) < 600
    assert renderer.render("{{ who }}", dict(who="next")) == "next"


@pytest.mark.parametrize("value", [object(), {1, 2}, b"bytes", lambda: 1])
def test_variables_that_json_has_not(renderer, value):
    with pytest.raises(TokenizerError, match=r"^chat_template: expected variables that JSON has: "):
        renderer.render("", dict(value=value))


@pytest.mark.parametrize("text", ["é日本😀", "\ud800", "a\nb\r\n\0\x1b", "'\"\\"])
def test_texts_come_back_as_they_are(renderer, text):
    assert renderer.render("{{ text }}", dict(text=text)) == text


def test_an_interrupted_rendering_answers_nobody_else():
    renderer = Renderer()
    assert renderer.render("first", {}) == "first"

    def interrupt(*_):
        raise KeyboardInterrupt

    old = signal.signal(signal.SIGALRM, interrupt)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.05)
        with pytest.raises(KeyboardInterrupt):
            renderer.render("{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}", {})
    finally:
        signal.signal(signal.SIGALRM, old)
    assert renderer.render("second", {}) == "second"


def test_a_process_that_dies_is_told_and_replaced(monkeypatch, tmp_path):
    monkeypatch.setattr("tokenspeed.text.renderer.WORKER", tmp_path / "absent.py")
    with pytest.raises(
        TokenizerError, match=r"^chat_template: the process that renders it does not start: .* status 2"
    ):
        Renderer().render("", {})
    dying = tmp_path / "dying.py"
    dying.write_text("print('{}', flush=True)\ninput()\nraise SystemExit(7)")
    monkeypatch.setattr("tokenspeed.text.renderer.WORKER", dying)
    renderer = Renderer()
    for _ in range(2):
        with pytest.raises(TokenizerError, match=r"^chat_template: the process that renders it ended with status 7$"):
            renderer.render("", {})


def test_threads_take_turns(renderer):
    found = {}

    def ask(number):
        for i in range(20):
            found[number, i] = renderer.render("{{ a }} {{ b }}", dict(a=number, b=i))

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {(a, b): f"{a} {b}" for a in range(4) for b in range(20)}
