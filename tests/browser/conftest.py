"""A headless Chromium, the server's page in it, and a server that wants a key and may be ended."""

import contextlib
import dataclasses
import json
import os
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import Browser, BrowserContext, ConsoleMessage, Page, Route, expect, sync_playwright

from tests.tokenspeed.server.conftest import served, until_ready
from tokenspeed.server import serve

__all__ = ["served"]
SECONDS = 20
"""Within which all that a test waits for must come."""


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    path = os.environ.get("CHROMIUM")
    if path is None:
        pytest.exit("CHROMIUM: expected the path of a browser: `make test-browser` finds one", 2)
    sandbox = ["--no-sandbox"] if os.geteuid() == 0 else []  # which root cannot have
    with sync_playwright() as playwright:
        found = playwright.chromium.launch(executable_path=path, args=sandbox)
        yield found
        found.close()


@dataclasses.dataclass
class Visit:
    """A page, and what it did that nobody sees.

    Attributes:
        errors: of its console and its scripts. elsewhere: addresses that it asked for outside its server.
    """

    page: Page
    errors: list[str]
    elsewhere: list[str]

    def text(self, id: str) -> str:
        return self.page.locator(f"#{id}").inner_text()

    def until(self, true: Callable[[], bool]) -> None:
        """Waits until it is true."""
        end = time.monotonic() + SECONDS
        while not true():
            assert time.monotonic() < end, {id: self.text(id) for id in ("status", "error", "count")}
            self.page.wait_for_timeout(20)

    def until_said(self, status: str) -> None:
        expect(self.page.locator("#status")).to_have_text(status, timeout=1e3 * SECONDS)

    def until_failed(self, *error: str) -> None:
        """With all of these in what it says."""
        alert = self.page.get_by_role("alert")
        for part in ("Error: ", *error):
            expect(alert).to_contain_text(part, timeout=1e3 * SECONDS)
        assert self.text("status") == ""

    def answered_with(self, *events: dict[str, Any], done: bool = True) -> None:
        """From now on its server's answers are these events, all at once."""
        answer = "".join(f"data: {json.dumps(event)}\n\n" for event in events) + "data: [DONE]\n\n" * done
        self.page.route("**/v1/completions", lambda route: route.fulfill(body=answer, content_type="text/event-stream"))

    def ask(self, prompt: str, *, tokens: int = 20, temperature: float = 0.0, kind: str = "completions") -> None:
        page = self.page
        page.get_by_label("Prompt").fill(prompt)
        page.get_by_label("Tokens", exact=True).fill(str(tokens))
        page.get_by_label("Temperature").fill(str(temperature))
        page.locator("#kind").select_option(kind)
        page.get_by_role("button", name="Generate").click()


@pytest.fixture
def visit(browser) -> Iterator[Callable[..., Visit]]:
    """Opens an address in a browser that knows nothing; nothing but the server is reached."""
    with contextlib.ExitStack() as contexts:

        def visit(url: str, width: int = 1000, height: int = 800) -> Visit:
            context: BrowserContext = browser.new_context(viewport=dict(width=width, height=height))
            contexts.callback(context.close)
            page = context.new_page()
            page.set_default_timeout(1e3 * SECONDS)
            found = Visit(page, [], [])

            def allow(route: Route) -> None:
                if urlsplit(route.request.url).netloc == urlsplit(url).netloc:
                    route.continue_()
                else:
                    found.elsewhere.append(route.request.url)
                    route.abort()

            def note(message: ConsoleMessage) -> None:
                if message.type in ("error", "warning"):
                    found.errors.append(message.text)

            context.route("**/*", allow)
            page.on("console", note)
            page.on("pageerror", lambda error: found.errors.append(str(error)))
            page.goto(url)
            return found

        yield visit


@pytest.fixture
def quiet(served, visit) -> Iterator[Visit]:
    """The page, which at the end has asked nobody else and complained of nothing."""
    found = visit(served.url)
    yield found
    assert found.errors == [] and found.elsewhere == []


@dataclasses.dataclass
class Guarded:
    """A server that wants a key."""

    url: str
    key: str
    end: Callable[[], None]


@pytest.fixture
def guarded(served, compiled_once) -> Iterator[Guarded]:
    with serve.bind("127.0.0.1", 0) as bound, compiled_once():
        server, _ = serve.server(lambda: served.llm, keys=["the key"], write=lambda line: None)
        thread = threading.Thread(target=server.run, kwargs=dict(sockets=[bound]))
        thread.start()
        url = f"http://127.0.0.1:{bound.getsockname()[1]}"
        until_ready(url)

        def end() -> None:
            server.drain()
            thread.join(60)
            bound.close()

        yield Guarded(url, "the key", end)
        end()


def slowed(served, monkeypatch):
    """Its engine takes its time for each step."""
    step = served.engine.step
    monkeypatch.setattr(served.engine, "step", lambda: time.sleep(0.1) or step())
