"""The page without a mouse, and as a screen reader has it."""

import pytest

from tests.browser.conftest import slowed

FOCUSED = "document.activeElement.id"
OUTLINED = "getComputedStyle(document.activeElement).outlineStyle !== 'none'"


def test_the_keyboard_is_enough(quiet):
    page = quiet.page
    assert page.evaluate(FOCUSED) == "prompt" and page.evaluate(OUTLINED)
    page.keyboard.press("Control+a")
    page.keyboard.type("A dog")
    seen = []
    for _ in range(5):
        page.keyboard.press("Tab")
        seen.append(page.evaluate(FOCUSED))
        assert page.evaluate(OUTLINED), seen[-1]
        if seen[-1] == "tokens":
            page.keyboard.type("7")
    assert seen == ["tokens", "temperature", "kind", "key", "send"]
    page.keyboard.press("Enter")
    quiet.until_said("Done")
    assert int(quiet.text("count")) <= 7 and quiet.text("text")
    assert page.evaluate(FOCUSED) == "send"


def test_the_focus_is_at_the_button_that_works(served, quiet, monkeypatch):
    slowed(served, monkeypatch)
    quiet.ask("The", tokens=100)
    quiet.until(lambda: quiet.page.evaluate(FOCUSED) == "stop")
    quiet.page.keyboard.press("Enter")
    quiet.until_said("Stopped")
    assert quiet.page.evaluate(FOCUSED) == "send"


def test_the_focus_stays_where_its_user_put_it(served, quiet, monkeypatch):
    slowed(served, monkeypatch)
    quiet.ask("The", tokens=5)
    quiet.until(lambda: quiet.page.evaluate(FOCUSED) == "stop")
    quiet.page.get_by_label("API key").focus()
    quiet.until_said("Done")
    assert quiet.page.evaluate(FOCUSED) == "key"


@pytest.mark.parametrize("keys", ["Control+Enter", "Meta+Enter"])
def test_enter_with_control_sends(quiet, keys):
    quiet.page.get_by_label("Tokens", exact=True).fill("3")
    quiet.page.get_by_label("Prompt").focus()
    quiet.page.keyboard.press(keys)
    quiet.until_said("Done")
    assert quiet.page.evaluate(FOCUSED) == "prompt"


def test_enter_alone_is_a_new_line(quiet):
    quiet.page.get_by_label("Prompt").fill("A")
    quiet.page.keyboard.press("Enter")
    assert quiet.page.get_by_label("Prompt").input_value() == "A\n" and quiet.text("status") == ""


def test_all_controls_have_names(quiet):
    page = quiet.page
    roles = [
        ("textbox", "Prompt"), ("spinbutton", "Tokens"), ("spinbutton", "Temperature"), ("combobox", "As"),
        ("textbox", "API key"), ("button", "Generate"), ("button", "Stop"),
    ]  # fmt: skip
    for role, name in roles:
        assert page.get_by_role(role, name=name).count() == 1, name
    assert page.locator("button, input, select, textarea").count() == len(roles), "and there are no others"
    assert page.get_by_role("main").count() == page.get_by_role("heading", level=1).count() == 1
    assert page.get_by_role("status").count() == page.get_by_role("alert").count() == 1 and page.title()
    assert page.get_by_role("log", name="Answer").count() == 1
    assert page.locator("html").get_attribute("lang") == "en"


@pytest.mark.parametrize("field, value", [("tokens", ""), ("tokens", "0"), ("temperature", "-1"), ("prompt", "")])
def test_what_cannot_be_sent_is_not(quiet, field, value):
    quiet.page.locator(f"#{field}").fill(value)
    quiet.page.get_by_role("button", name="Generate").click()
    assert quiet.page.evaluate(f"document.getElementById('{field}').matches(':invalid')")
    assert quiet.page.evaluate(FOCUSED) == field and quiet.text("status") == ""
