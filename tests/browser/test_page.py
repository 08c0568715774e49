"""The page as its user has it: tokens that stream, figures, errors in words, and nothing from elsewhere."""

import re

import pytest

from tests.browser.conftest import slowed

WATCH = """() => {
  const text = document.getElementById("text");
  window.lengths = [];
  const watch = new MutationObserver(() => window.lengths.push(text.textContent.length));
  watch.observe(text, {childList: true, characterData: true, subtree: true});
}"""
BREAKS = """() => {
  const ask = window.fetch;
  let begun = false;
  const pull = stream => {
    if (begun) return stream.error(new TypeError("no network"));
    begun = true;
    stream.enqueue(new TextEncoder().encode('data: {"choices": [{"text": "A"}]}\\n\\n'));
  };
  const broken = () => new Response(new ReadableStream({ pull }, { highWaterMark: 0 }));
  window.fetch = (path, ...rest) => path.endsWith("completions") ? broken() : ask(path, ...rest);
}"""
FLOWS_OVER = "document.documentElement.scrollWidth > document.documentElement.clientWidth"


def test_tokens_stream_in_with_their_figures(served, quiet):
    body = dict(prompt="Once upon a time", max_tokens=60, temperature=0)
    expected = served.post("/v1/completions", **body).json()
    quiet.page.evaluate(WATCH)
    quiet.ask("Once upon a time", tokens=60)
    quiet.until_said("Done")
    assert quiet.page.locator("#text").text_content() == expected["choices"][0]["text"]
    lengths = quiet.page.evaluate("window.lengths")
    assert len(set(lengths)) > 10 and lengths == sorted(lengths), "it comes in pieces"
    assert re.fullmatch(r"\d+\.\d ms", quiet.text("ttft"))
    assert int(quiet.text("count")) == expected["usage"]["completion_tokens"]


def test_text_is_there_before_the_end(served, quiet, monkeypatch):
    slowed(served, monkeypatch)
    quiet.ask("The", tokens=100)
    quiet.until(lambda: int(quiet.text("count")) >= 3)
    assert quiet.text("text") and quiet.text("status") == "" and int(quiet.text("count")) < 100
    assert 0 < float(quiet.text("rate")) < 50
    assert quiet.page.get_by_role("button", name="Generate").is_disabled()
    quiet.page.get_by_role("button", name="Stop").click()
    quiet.until_said("Stopped")


def test_stop_ends_the_stream_and_frees_the_server(served, quiet, monkeypatch):
    slowed(served, monkeypatch)
    quiet.ask("The", tokens=100)
    quiet.until(lambda: int(quiet.text("count")) >= 3)
    assert served.engine.pool.used > 0
    quiet.page.get_by_role("button", name="Stop").click()
    quiet.until_said("Stopped")
    shown = quiet.text("text")
    quiet.until(lambda: served.engine.pool.used == served.admission.under_way == 0)
    assert quiet.text("text") == shown and int(quiet.text("count")) < 100
    assert quiet.page.get_by_role("button", name="Stop").is_disabled()
    monkeypatch.undo()
    quiet.ask("The", tokens=3)
    quiet.until_said("Done")


def test_a_chat(served, quiet):
    body = dict(messages=[dict(role="user", content="What does an owl say?")], max_tokens=30, temperature=0)
    expected = served.post("/v1/chat/completions", **body).json()["choices"][0]["message"]["content"]
    quiet.ask("What does an owl say?", tokens=30, kind="chat")
    quiet.until_said("Done")
    assert quiet.page.locator("#text").text_content() == expected


def test_what_the_server_refuses_is_said(served, visit):
    found = visit(served.url)
    found.ask("word " * 500)
    found.until_failed("leave no room in a context of 128")
    assert found.page.get_by_role("button", name="Generate").is_enabled() and found.text("text") == ""


def test_a_wrong_key_then_the_right_one(guarded, visit):
    found = visit(guarded.url)
    for key in ("", "another"):
        found.page.get_by_label("API key").fill(key)
        found.ask("The", tokens=3)
        found.until_failed("API key is needed")
    found.page.get_by_label("API key").fill(guarded.key)
    found.ask("The", tokens=3)
    found.until_said("Done")
    assert all("401" in error for error in found.errors) and found.elsewhere == []


def test_a_server_that_is_gone(guarded, visit):
    found = visit(guarded.url)
    guarded.end()
    found.ask("The", tokens=3)
    found.until_failed()
    assert found.page.get_by_role("button", name="Generate").is_enabled()


def test_an_error_in_the_midst_is_said(served, visit):
    """As the server sends it where its engine ends."""
    found = visit(served.url)
    found.answered_with(dict(choices=[dict(text="A")]), dict(error=dict(message="the engine ended: no memory")))
    found.ask("The")
    found.until_failed("the engine ended: no memory")
    assert found.text("text") == "A"
    colour = "one => getComputedStyle(one).color"
    assert found.page.locator("#error").evaluate(colour) != found.page.locator("#text").evaluate(colour)
    found.page.unroute("**/v1/completions")
    found.ask("The", tokens=3)
    found.until_said("Done")
    assert found.text("error") == ""


def test_a_stream_without_its_end_broke_off(quiet):
    quiet.answered_with(dict(choices=[dict(text="A")]), done=False)
    quiet.ask("The")
    quiet.until_failed("the stream broke off")
    assert quiet.text("text") == "A"


def test_a_connection_that_ends_in_the_midst_broke_off(quiet):
    quiet.page.evaluate(BREAKS)
    quiet.ask("The")
    quiet.until_failed("the stream broke off: no network")
    assert quiet.text("text") == "A"


def test_tokens_that_arrive_together_have_no_rate(quiet):
    quiet.answered_with(*[dict(choices=[dict(text="A")])] * 80)
    quiet.ask("The", tokens=80)
    quiet.until_said("Done")
    assert (quiet.text("count"), quiet.text("rate")) == ("80", "–")


def test_what_a_model_says_is_text(served, visit):
    found = visit(served.url)
    said = "<img src='http://127.0.0.2/x' onerror='window.ran = 1'><script>window.ran = 1</script>"
    found.answered_with(dict(choices=[dict(text=said)]))
    found.ask("The")
    found.until_said("Done")
    assert found.text("text") == said and found.page.evaluate("window.ran") is None
    assert found.errors == [] and found.elsewhere == []


@pytest.mark.parametrize("source", ["img", "script", "iframe"])
def test_the_policy_lets_nothing_in_from_elsewhere(quiet, source):
    refused = quiet.page.evaluate(
        """source => new Promise(done => {
          document.addEventListener("securitypolicyviolation", event => done(event.blockedURI));
          const one = document.createElement(source);
          one.src = "http://127.0.0.2:9/x";
          document.body.append(one);
          setTimeout(() => done(null), 5000);
        })""",
        source,
    )
    assert refused.startswith("http://127.0.0.2:9") and quiet.elsewhere == []
    quiet.errors.clear()  # the browser tells of what it refused


@pytest.mark.parametrize("width", [320, 768, 1920])
def test_it_fits_its_window(served, visit, width):
    found = visit(served.url, width=width, height=640)
    assert not found.page.evaluate(FLOWS_OVER)
    found.ask("Once upon a time", tokens=100)
    found.until_said("Done")
    assert not found.page.evaluate(FLOWS_OVER)
    found.page.locator("#text").evaluate("one => one.textContent = 'w'.repeat(2000)")
    assert not found.page.evaluate(FLOWS_OVER)
    for one in found.page.locator("button, input, select, textarea").all():
        box = one.bounding_box()
        assert box is not None and box["x"] >= 0 and box["x"] + box["width"] <= width and box["height"] >= 24
