"""What is told about one span, and what can be done with it."""

from dataclasses import replace
from typing import get_args

import pytest
from textual.app import App

from sr_edge.budget import Price
from sr_edge.events import End, Trigger
from sr_edge.transcript import SpanRecord
from sr_edge.tui.screens.detail import SpanDetail, span_facts

RECORD = SpanRecord(
    span=2,
    trigger="marker",
    remote="lab",
    p_open=0.83,
    sent_tokens=1812,
    sent_bytes=7200,
    text="so \x1b[2J7^2024 is [b]1[/b]",
    end="handback",
    tokens=46,
    remote_prompt_tokens=1790,
    remote_completion_tokens=44,
    cost=0.00118,
    ttft=0.4,
    seconds=0.9,
    resume=0.05,
)
PRICE = Price(input=0.6, output=2.4)


def facts(record: SpanRecord, **options) -> dict[str, str]:
    return dict(span_facts(record, **options))


def test_all_there_is_to_know_is_told():
    assert facts(RECORD, price=PRICE) == {
        "why": "the small model asked for help (p 0.83)",
        "sent": "1,812 tokens · 7.2 kB",
        "time": "first text after 400 ms · 900 ms in all · back to the small model in 50 ms",
        "text": "46 tokens · 92 tok/s",
        "its count": "1,790 read · 44 written",
        "cost": "1,790 × $0.6/M + 44 × $2.4/M = $0.0012",
        "ended": "the small model wanted to write again",
    }


def test_a_probability_is_told_only_where_the_model_asked():
    assert facts(replace(RECORD, trigger="policy"))["why"] == "the policy asks for it here"
    assert facts(replace(RECORD, p_open=None))["why"] == "the small model asked for help"
    assert facts(RECORD)["why"] == "the small model asked for help (p 0.83)"


def test_no_price_is_invented():
    assert facts(replace(RECORD, cost=None))["cost"] == "not known: no price is set"
    assert facts(RECORD)["cost"] == "$0.0012"


@pytest.mark.parametrize("end", ["declined", "offline"])
def test_what_stayed_here_was_not_sent(end):
    record = replace(
        RECORD, end=end, cost=None, tokens=0, remote_prompt_tokens=None, remote_completion_tokens=None
    )
    told = facts(record)
    assert told["sent"] == "nothing"
    assert "cost" not in told


@pytest.mark.parametrize("trigger", get_args(Trigger))
@pytest.mark.parametrize("end", [None, *get_args(End)])
def test_every_reason_has_its_words(trigger, end):
    told = facts(replace(RECORD, trigger=trigger, end=end, error="a\x1b[2J\nb"))
    assert told["why"]
    assert told["ended"]
    assert told["error"] == "a b"


class Page(App[None]):
    def __init__(self, record: SpanRecord = RECORD, **options) -> None:
        super().__init__()
        self.detail = SpanDetail(record, **options)
        self.done: list[str | None] = []

    def on_mount(self) -> None:
        self.push_screen(self.detail, self.done.append)

    def text(self) -> str:
        return "\n".join(strip.text for strip in self.screen._compositor.render_strips())


@pytest.mark.parametrize(
    ("key", "doing"),
    [("l", "local"), ("b", "remote"), ("f", "fork"), ("y", "copy"), ("escape", None), ("q", None)],
)
async def test_a_key_says_what_is_to_be_done(key, doing):
    app = Page()
    async with app.run_test(size=(120, 40)) as pilot:
        await pilot.pause()
        await pilot.press(key)
        await pilot.pause()
        assert app.done == [doing]


@pytest.mark.parametrize("size", [(120, 40), (60, 20), (40, 12)])
async def test_it_is_readable_at_any_size(size):
    app = Page(price=PRICE)
    async with app.run_test(size=size) as pilot:
        await pilot.pause()
        text = app.text()
        assert "span 2 · lab" in text
        assert "the small model" in text
        assert "[esc] close" in text


async def test_the_text_is_shown_as_it_was_written():
    app = Page()
    async with app.run_test(size=(120, 40)) as pilot:
        await pilot.pause()
        assert "so 7^2024 is [b]1[/b]" in app.text()


async def test_what_was_sent_is_shown_when_it_is_asked_for():
    app = Page(sent="user: what is\x1b[2J 7^2024?")
    async with app.run_test(size=(120, 40)) as pilot:
        await pilot.pause()
        assert "user: what is" not in app.text()
        await pilot.press("v")
        await pilot.pause()
        assert "user: what is 7^2024?" in app.text()
        await pilot.press("v")
        await pilot.pause()
        assert "user: what is" not in app.text()


async def test_a_long_text_can_be_scrolled():
    app = Page(replace(RECORD, text="\n".join(f"line {n}" for n in range(200))))
    async with app.run_test(size=(60, 20)) as pilot:
        await pilot.pause()
        assert "line 199" not in app.text()
        await pilot.press("end")
        await pilot.pause()
        await pilot.wait_for_animation()
        assert "line 199" in app.text()
        assert "[esc] close" in app.text()
