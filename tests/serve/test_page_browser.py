"""The web page as a person meets it: a real browser, the real door, and scripted models or the demo pair."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import cycle
from pathlib import Path
from typing import Any

import pytest
from tests.serve.scripted_desk import Figures, ScriptedDesk
from tests.serve.serving import TOKEN, Served, serving

from sr_edge.errors import EdgeError
from sr_edge.events import LocalToken
from sr_edge.roles import Outcome
from sr_edge.serve.app import Document
from sr_edge.serve.jobs import Busy, Failed, Heard, Job, Ticket
from sr_edge.serve.page import load_page
from sr_edge.testing import END, OPEN, Reply

playwright = pytest.importorskip(
    "playwright.sync_api", reason="playwright is not installed: see `make test-all`"
)

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
CHROMIUM = next((path for path in map(shutil.which, NAMES) if path), None)
PATIENCE = 15_000  # ms

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason=f"there is no browser here: none of {', '.join(NAMES)}"),
]

IDA = """<think>Ida fills 28 bags with 4 coins each, so 28 * 4: ⟦20 * 4 = 80, 8 * 4 = 32, 80 + 32 = 112⟧.
Tom gives her 93 more, so 112 + 93: ⟦!⟧112 + 90 = 202, 202 + 3 = 205.</think>

The answer is \\boxed{205}."""

TOUR = r"""<think>
First the **sum**, then its limit.
⟦It is geometric,
so it converges.⟧ Good.

Then a program.
</think>

## A short ⟦tour⟧

With **bold**, *italic*, `code`, ~~struck~~ words; 5*3*2 stays, and so does a<b>c</b>. It costs $5 or $6.
A [link](https://example.org/a_(b)) is text. ***Both.***

1. First, ⟦we note that $a^2 + b^2 = c^2$ holds for every right triangle⟧, as known.
2. Second:
   - nested *one*
   - nested **two**

     with a paragraph
3. Third ⟦spans
4. several items⟧ of the list

> A quotation, which says: ⟦"the **remote** wrote this."⟧

The sum is
\[
\sum_{n=1}^{\infty} \frac{1}{n^2} = \frac{\pi^2}{6}, \qquad \int_0^1 x\,dx = \tfrac12
\]
\begin{align*} a &= b \\ c &= d \end{align*}
and $$A = \begin{pmatrix} 1 & 2 \\ 3 & 4 \end{pmatrix}$$ but not $\foo{x}$, nor \(half ⟦of⟧ it\).

```python
def total(values):
    # <b>not bold</b>, ```` not the end
⟦    return sum(value for value in values)
⟧```

| n | value | note |
|---|------:|------|
| 1 | $\frac12$ | ⟦half⟧ |
| 2 | 0.25 | a `quarter` |

---

<img src=x onerror="document.title='hit'"> <script>document.title='hit'</script>

The answer is $\boxed{\dfrac{\pi^2}{6}}$."""


class Pace:
    """Lets so many tokens through, or all."""

    def __init__(self, tokens: int | None = None) -> None:
        self._left = tokens
        self._changed = threading.Condition()

    def open(self) -> None:
        with self._changed:
            self._left = None
            self._changed.notify_all()

    def __call__(self) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self._left is None or self._left > 0)
            if self._left is not None:
                self._left -= 1


def pause() -> None:
    time.sleep(0.001)


@dataclass
class Scene:
    """What is written when its name is asked for. `⟦text⟧` is a span, `⟦!⟧` one that fails."""

    text: str
    pace: Callable[[], object] = lambda: None
    breaks_after: int | None = None
    """Tokens."""

    def desk(self) -> ScriptedDesk:
        parts = re.split(r"⟦(.*?)⟧", self.text, flags=re.DOTALL)
        segments = [
            [*part.encode(), OPEN if n + 2 < len(parts) else END]
            for n, part in enumerate(parts)
            if n % 2 == 0
        ]
        replies = [
            Reply((), Outcome("error", error="the remote answered 503"))
            if part == "!"
            else Reply(tuple(re.findall(r"\s*\S+\s*", part)))
            for part in parts[1::2]
        ]
        return ScriptedDesk(segments, replies, gate=self.pace)


@dataclass
class Library:
    """A desk that finds its script by the first word of what is asked."""

    scenes: dict[str, Scene]
    name: str = "Scripted Small"
    big: str | None = "scripted remote"
    lanes: int = 2
    jobs: list[Job] = field(default_factory=list)
    desks: list[ScriptedDesk] = field(default_factory=list)
    busy: list[Busy] = field(default_factory=list)
    """Raised before anything else."""

    def figures(self) -> Figures:
        return Figures(waiting=0, running=sum(len(desk.running) for desk in self.desks))

    def submit(self, job: Job, hear: Callable[[Heard], None]) -> Ticket:
        self.jobs.append(job)
        if self.busy:
            raise self.busy.pop()
        asked = next(one.content for one in reversed(job.messages) if one.role == "user")
        scene = self.scenes[asked.split()[0].lower()]
        self.desks.append(scene.desk())
        return self.desks[-1].submit(
            job, hear if scene.breaks_after is None else broken(hear, scene.breaks_after)
        )

    def close(self) -> None:
        for scene in self.scenes.values():
            if isinstance(scene.pace, Pace):
                scene.pace.open()
        for desk in self.desks:
            desk.close()


def broken(hear: Callable[[Heard], None], after: int) -> Callable[[Heard], None]:
    """Hears so many tokens, then that the model failed."""
    left = iter(range(after))

    def hears(heard: Heard) -> None:
        if isinstance(heard, LocalToken) and next(left, None) is None:
            heard = Failed(EdgeError("the model's file is damaged"))
        hear(heard)

    return hears


@contextmanager
def served(desk: Any) -> Iterator[Served]:
    page = load_page()
    with serving(desk, page=Document(page.body, page.headers)) as one:
        yield one


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


class Visit:
    """A browser of its own, with an empty memory, at the page."""

    def __init__(self, browser: Any, url: str, token: str = TOKEN, **options: Any) -> None:
        self.url = url + "/"
        self.context = browser.new_context(**options)
        self.context.set_default_timeout(PATIENCE)
        self.complaints: list[str] = []
        """Errors, and what the policy refused."""
        self.page = self.tab(token)

    def tab(self, token: str | None) -> Any:
        page = self.context.new_page()
        page.on("pageerror", lambda error: self.complaints.append(str(error)))
        page.on("console", self._hear)
        page.goto(self.url + (f"#token={token}" if token else ""))
        return page

    def _hear(self, message: Any) -> None:
        if message.type == "error" and "Failed to load resource" not in message.text:
            self.complaints.append(message.text)

    def ask(self, text: str, page: Any = None) -> Any:
        """Type it, and send it with Enter. Returns the answer."""
        page = page or self.page
        number = page.locator(".answer").count()
        box = page.get_by_role("textbox", name="Your message")
        box.fill(text)
        box.press("Enter")
        return page.locator(".answer").nth(number)

    def finish(self, text: str, page: Any = None) -> Any:
        answer = self.ask(text, page)
        over(answer)
        return answer


def expect(locator: Any) -> Any:
    return playwright.expect(locator)


def over(answer: Any) -> None:
    expect(answer).to_have_attribute("aria-busy", "false", timeout=PATIENCE)


def said(answer: Any) -> Any:
    return answer.locator("> .said")


@pytest.fixture
def scenes() -> dict[str, Scene]:
    return {"ida": Scene(IDA), "tour": Scene(TOUR), "hello": Scene("Hello ⟦big world⟧ there.")}


@pytest.fixture
def library(scenes: dict[str, Scene]) -> Library:
    return Library(scenes)


@pytest.fixture
def server(library: Library) -> Iterator[Served]:
    with served(library) as one:
        yield one


def address(server: Served) -> str:
    return f"http://127.0.0.1:{server.port}"


@pytest.fixture
def visit(chromium: Any, server: Served) -> Iterator[Visit]:
    one = Visit(chromium, address(server), viewport={"width": 1100, "height": 800})
    yield one
    one.context.close()
    assert not one.complaints


# --- the story ----------------------------------------------------------------------------------------


@pytest.fixture
def command(tmp_path: Path) -> Iterator[tuple[str, str]]:
    """`sr-edge serve` with the demo pair: its address, and its token."""
    environment = {**os.environ, "SR_EDGE_HOME": str(tmp_path)}
    serve = (sys.executable, "-m", "sr_edge", "serve", "--port", "0")
    with subprocess.Popen(serve, env=environment, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        base = child.stdout.readline().strip()
        yield base.removesuffix("/v1"), (tmp_path / "state" / "serve-token").read_text().strip()
        child.terminate()


def test_demo_pair_solves_a_problem_before_the_visitors_eyes(chromium: Any, command: tuple[str, str]) -> None:
    url, token = command
    visit = Visit(chromium, url, token)
    page = visit.page
    page.get_by_role("button", name="Settings").click()
    page.get_by_label("Temperature").fill("0")
    page.get_by_role("button", name="Done").click()
    page.locator(".tries button").first.click()
    answer = page.locator(".answer")
    over(answer)
    expect(said(answer)).to_contain_text("The answer is")
    expect(answer.locator(".boxed")).to_have_text(re.compile(r"\d+"))
    expect(answer.locator(".foot")).to_contain_text("by the large model")
    answer.locator(".badge").first.press("Enter")
    expect(page.locator("#detail")).to_contain_text("sr-edge demo big")
    visit.context.close()
    assert not visit.complaints


def test_answer_streams_in_the_colours_of_who_wrote_it(visit: Visit, scenes: dict[str, Scene]) -> None:
    pace = scenes["ida"].pace = Pace(90)
    answer = visit.ask("Ida fills bags")
    expect(answer.locator(".think")).to_contain_text("80 + 32 = 112")
    expect(answer.locator(".think")).to_have_attribute("open", "")
    expect(answer).to_have_attribute("aria-busy", "true")
    expect(visit.page.get_by_role("button", name="Stop")).to_be_visible()
    pace.open()
    over(answer)
    expect(said(answer)).to_have_text("The answer is 205.")
    expect(answer.locator(".boxed")).to_have_text("205")
    remote = answer.locator(".prose .by")
    expect(remote).to_have_text(["20 * 4 = 80, 8 * 4 = 32, 80 + 32 = 112"])
    expect(remote).to_have_css("text-decoration-line", "underline")
    expect(answer.locator(".badge")).to_have_text(["◆1", "◇2"])
    expect(answer.locator(".foot")).to_contain_text(re.compile(r"\d+\.\d % by the large model in 1 span"))
    expect(visit.page.get_by_role("button", name="Send")).to_be_disabled()
    spoken = visit.page.get_by_role("log")
    expect(spoken).to_contain_text("The answer is")
    expect(spoken).to_contain_text("the answer is complete")


def test_long_thinking_is_open_while_it_streams_and_folded_after(
    visit: Visit, scenes: dict[str, Scene]
) -> None:
    step, pace = "One step, and another one.\n", Pace(200)
    scenes["long"] = Scene(f"<think>{step * 50}</think>Done.", pace)
    answer = visit.ask("long")
    think = answer.locator(".think")
    expect(think).to_contain_text("another one")
    expect(think).to_have_attribute("open", "")
    pace.open()
    over(answer)
    expect(think).not_to_have_attribute("open", "")
    expect(think).to_contain_text(re.compile(r"Thought for [\d.]+ m?s"))
    think.locator("summary").press("Enter")
    expect(think).to_have_attribute("open", "")


def test_shift_enter_breaks_the_line(visit: Visit, library: Library) -> None:
    box = visit.page.get_by_role("textbox", name="Your message")
    box.press_sequentially("hello")
    box.press("Shift+Enter")
    box.press_sequentially("there")
    box.press("Enter")
    over(visit.page.locator(".answer"))
    assert [job.messages[-1].content for job in library.jobs] == ["hello\nthere"]


@pytest.mark.parametrize("how", ["Escape", "button"])
def test_stopped_answer_can_be_gone_on_with(
    visit: Visit, library: Library, scenes: dict[str, Scene], how: str
) -> None:
    pace = scenes["ida"].pace = Pace(95)
    answer = visit.ask("Ida fills bags")
    expect(answer.locator(".think")).to_contain_text("112 + 93")
    if how == "Escape":
        visit.page.keyboard.press("Escape")
    else:
        visit.page.get_by_role("button", name="Stop").click()
    over(answer)
    expect(answer).to_contain_text("Stopped.")
    pace.open()
    so_far = answer.locator(".think .prose").inner_text()
    scenes["ida"] = Scene(IDA.replace("⟦", "", 1).replace("⟧", "", 1))
    answer.get_by_role("button", name="Go on from here").click()
    over(answer)
    expect(said(answer)).to_have_text("The answer is 205.")
    assert library.jobs[1].continues.startswith("<think>" + so_far.partition(" ◆")[0][:40])
    expect(answer).not_to_contain_text("Stopped.")
    expect(answer.locator(".prose .by")).to_have_count(1)


def test_answer_proper_goes_on_to_the_letter(
    visit: Visit, library: Library, scenes: dict[str, Scene]
) -> None:
    text = "One two three four five six."
    pace = Pace(14)
    scenes["count"] = Scene(text, pace)
    answer = visit.ask("count")
    expect(said(answer)).to_have_text("One two three")
    visit.page.keyboard.press("Escape")
    over(answer)
    pace.open()
    scenes["count"] = Scene(text)
    answer.get_by_role("button", name="Go on from here").click()
    over(answer)
    expect(said(answer)).to_have_text(text)
    (asked,) = (one for one in library.jobs[1].messages if one.content)
    assert (asked.role, asked.content) == ("user", "count")
    assert library.jobs[1].continues.strip() == "One two three"


def test_stop_while_the_answer_waits_for_its_turn(visit: Visit, scenes: dict[str, Scene]) -> None:
    scenes["hello"].pace = Pace(0)
    answer = visit.ask("hello")
    expect(answer).to_contain_text("waiting for the first word")
    visit.page.keyboard.press("Escape")
    expect(answer).to_contain_text("Stopped before the first word.")
    expect(visit.page.locator(".user")).to_have_text("hello")


def test_span_says_what_it_took(visit: Visit) -> None:
    answer, detail = visit.finish("Ida fills bags"), visit.page.locator("#detail")
    answer.locator(".prose .by").first.click()
    expect(detail).to_be_visible()
    expect(detail).to_contain_text("Span 1 · scripted remote")
    expect(detail).to_contain_text("20 * 4 = 80")
    facts = dict(
        zip(detail.locator("dt").all_inner_texts(), detail.locator("dd").all_inner_texts(), strict=True)
    )
    assert facts["ended"] == "the large model had said all it wanted to (stop)"
    assert re.fullmatch(r"38 tokens( · \d+ tok/s)?", facts["text"])
    assert re.fullmatch(r"first text after \d+ ms · \d+ ms in all", facts["time"])
    assert re.fullmatch(r"\d+ tokens · \d+ B", facts["sent"])
    assert facts["remote"] == "scripted remote"
    detail.get_by_role("button", name="The next span").click()
    expect(detail).to_contain_text("the remote answered 503")
    visit.page.keyboard.press("Escape")
    expect(detail).to_be_hidden()


def test_spans_are_reached_with_keys_alone(visit: Visit) -> None:
    answer, page = visit.finish("Ida fills bags"), visit.page
    page.locator("#talk").focus()
    page.keyboard.press("]")
    expect(answer.locator(".badge").first).to_be_focused()
    expect(answer.locator(".prose .by").first).to_have_class(re.compile(r"\bon\b"))
    page.keyboard.press("Enter")
    expect(page.locator("#detail")).to_be_visible()
    page.keyboard.press("]")
    expect(page.locator("#detail-title")).to_contain_text("Span 2")
    page.keyboard.press("Escape")
    expect(answer.locator(".badge").nth(1)).to_be_focused()
    page.keyboard.press("/")
    expect(page.get_by_role("textbox", name="Your message")).to_be_focused()


# --- what is kept -------------------------------------------------------------------------------------


def test_reload_keeps_the_conversation(visit: Visit) -> None:
    answer = visit.finish("Ida fills bags")
    before = answer.inner_text()
    visit.page.reload()
    expect(visit.page.locator(".user")).to_have_text("Ida fills bags")
    assert visit.page.locator(".answer").inner_text() == before
    visit.finish("hello")
    expect(visit.page.locator(".turn")).to_have_count(4)


def test_reload_in_mid_stream_keeps_what_came(visit: Visit, scenes: dict[str, Scene]) -> None:
    scenes["hello"] = Scene("One two three ⟦four⟧ five six.", Pace(18))
    answer = visit.ask("hello")
    expect(said(answer)).to_contain_text("four")
    visit.page.reload()
    answer = visit.page.locator(".answer")
    expect(said(answer)).to_contain_text("One two three ◆1four")
    expect(answer).to_contain_text("Stopped.")
    expect(answer.get_by_role("button", name="Go on from here")).to_be_visible()
    expect(answer.locator(".foot")).to_contain_text("about")


def test_answer_goes_on_while_another_conversation_is_in_sight(
    visit: Visit, scenes: dict[str, Scene]
) -> None:
    page, pace = visit.page, Pace(95)
    scenes["ida"].pace = pace
    expect(visit.ask("Ida fills bags").locator(".think")).to_contain_text("112 + 93")
    page.get_by_role("button", name="New chat").click()
    expect(page.locator(".turn")).to_have_count(0)
    visit.finish("hello")
    rows = page.locator("#chats .open")
    expect(rows).to_have_class([re.compile("open"), re.compile("busy")])
    rows.nth(1).click()
    answer = page.locator(".answer")
    expect(answer.locator(".think")).to_contain_text("112 + 93")
    rows.nth(0).click()
    pace.open()
    expect(rows.nth(1)).not_to_have_class(re.compile("busy"))
    rows.nth(1).click()
    expect(said(answer)).to_have_text("The answer is 205.")


def test_what_is_typed_survives_a_reload(visit: Visit) -> None:
    visit.page.get_by_role("textbox", name="Your message").fill("half a thought")
    visit.page.reload()
    expect(visit.page.get_by_role("textbox", name="Your message")).to_have_value("half a thought")


def test_conversations_are_listed_renamed_and_deleted(visit: Visit) -> None:
    page = visit.page
    visit.finish("Ida fills bags")
    page.get_by_role("button", name="New chat").click()
    visit.finish("hello")
    rows = page.locator("#chats .open")
    expect(rows).to_have_text(["hello", "Ida fills bags"])
    rows.nth(1).click()
    expect(page.locator(".user")).to_have_text("Ida fills bags")
    rows.nth(1).press("F2")
    page.get_by_label("Title").fill("Coins")
    page.keyboard.press("Enter")
    expect(rows).to_have_text(["hello", "Coins"])
    rows.nth(0).press("Delete")
    page.get_by_role("button", name="Cancel").click()
    expect(rows).to_have_count(2)
    rows.nth(0).press("Delete")
    page.get_by_role("alertdialog").get_by_role("button", name="Delete").click()
    expect(rows).to_have_text(["Coins"])
    page.reload()
    expect(rows).to_have_text(["Coins"])


def test_conversation_that_is_deleted_while_it_is_written_stays_away(
    visit: Visit, scenes: dict[str, Scene]
) -> None:
    scenes["ida"].pace = Pace(95)
    expect(visit.ask("Ida fills bags").locator(".think")).to_contain_text("112 + 93")
    visit.page.locator("#chats .open").press("Delete")
    visit.page.get_by_role("alertdialog").get_by_role("button", name="Delete").click()
    expect(visit.page.locator("#chats .open")).to_have_count(0)
    visit.page.reload()
    expect(visit.page.locator("#welcome")).to_be_visible()
    expect(visit.page.locator("#chats .open")).to_have_count(0)


def test_two_tabs_never_overwrite_each_other(visit: Visit, scenes: dict[str, Scene]) -> None:
    visit.finish("hello one")
    other = visit.context.new_page()
    other.goto(visit.page.url)
    expect(other.locator(".user")).to_have_text("hello one")
    pace = scenes["hello"].pace = Pace(0)
    first = visit.ask("hello two")
    expect(other.locator(".user")).to_have_count(2)
    second = visit.ask("hello three", other)
    expect(other.locator("#note")).to_contain_text("Another tab is writing")
    expect(second).to_have_count(0)
    pace.open()
    over(first)
    expect(other.locator(".answer").nth(1)).to_contain_text("big world")


def test_tab_that_did_not_hear_of_the_other_keeps_a_conversation_of_its_own(visit: Visit) -> None:
    visit.finish("hello one")
    deaf = visit.context.new_page()
    deaf.add_init_script("addEventListener('storage', (event) => event.stopImmediatePropagation())")
    deaf.goto(visit.page.url)
    expect(deaf.locator(".user")).to_have_text("hello one")
    visit.finish("hello two")
    visit.finish("hello three", deaf)
    rows = visit.page.locator("#chats .open")
    expect(rows).to_have_text(["hello one (this tab)", "hello one"])
    expect(visit.page.locator(".user")).to_have_text(["hello one", "hello two"])
    expect(deaf.locator(".user")).to_have_text(["hello one", "hello three"])
    expect(deaf.locator("#note")).to_contain_text("Another tab has changed this conversation")


def test_full_storage_loses_nothing(visit: Visit) -> None:
    fill = """() => {
        let text = "x".repeat(1 << 20), n = 0;
        while (text.length) {
            try {
                localStorage.setItem("other" + n++, text);
            } catch {
                text = text.slice(text.length / 2 + 1);
            }
        }
    }"""
    visit.page.evaluate(fill)
    answer = visit.finish("Ida fills bags")
    expect(said(answer)).to_have_text("The answer is 205.")
    expect(visit.page.locator("#note")).to_contain_text("storage is full")
    visit.page.evaluate("() => { for (let n = 0; n < 40; n++) localStorage.removeItem('other' + n); }")
    visit.finish("hello")
    expect(visit.page.locator("#note")).to_be_hidden()
    visit.page.reload()
    expect(visit.page.locator(".turn")).to_have_count(4)
    visit.complaints.clear()  # the page says on the console what it could not keep


def test_export_says_who_wrote_what(visit: Visit) -> None:
    visit.finish("Ida fills bags")
    with visit.page.expect_download() as coming:
        visit.page.get_by_role("button", name="Export").click()
    exported = json.loads(Path(coming.value.path()).read_text())
    user, assistant = exported["messages"]
    assert user == {"role": "user", "content": "Ida fills bags"}
    assert assistant["content"].strip() == "The answer is \\boxed{205}."
    segments = assistant["sr_edge"]["segments"]
    whole = "".join(one["text"] for one in segments)
    assert whole == assistant["reasoning_content"] + assistant["content"]
    assert [one["text"] for one in segments if one["origin"] == "remote"] == [
        "20 * 4 = 80, 8 * 4 = 32, 80 + 32 = 112"
    ]
    assert [one["end"] for one in assistant["sr_edge"]["spans"]] == ["stop", "error"]


# --- asking again -------------------------------------------------------------------------------------


def test_edit_cuts_what_follows_once_that_is_confirmed(visit: Visit, library: Library) -> None:
    visit.finish("hello one")
    visit.finish("hello two")
    edit = visit.page.locator(".user").first.get_by_role("button", name="Edit")
    field_ = visit.page.locator(".user textarea")
    sure = visit.page.get_by_role("alertdialog")
    edit.click()
    field_.fill("hello again")
    field_.press("Enter")
    expect(sure).to_contain_text("3 later messages")
    sure.get_by_role("button", name="Cancel").click()
    expect(visit.page.locator(".turn")).to_have_count(4)
    edit.click()
    field_.fill("hello again")
    field_.press("Enter")
    sure.get_by_role("button", name="Send it anew").click()
    expect(visit.page.locator(".turn")).to_have_count(2)
    over(visit.page.locator(".answer"))
    assert [one.content for one in library.jobs[-1].messages] == ["hello again"]


def test_answer_is_written_again(visit: Visit, library: Library) -> None:
    visit.finish("hello one")
    visit.page.get_by_role("button", name="Write it again").click()
    expect(visit.page.locator(".turn")).to_have_count(2)
    over(visit.page.locator(".answer"))
    assert [one.content for one in library.jobs[1].messages] == ["hello one"]


def test_history_is_sent_without_the_thinking(visit: Visit, library: Library) -> None:
    visit.finish("Ida fills bags")
    visit.finish("hello")
    roles = [(one.role, one.content.strip()) for one in library.jobs[1].messages]
    assert roles == [
        ("user", "Ida fills bags"),
        ("assistant", "The answer is \\boxed{205}."),
        ("user", "hello"),
    ]


def test_settings_and_the_model_go_with_the_request(visit: Visit, library: Library) -> None:
    page = visit.page
    page.get_by_role("button", name="Settings").click()
    for label, value in {"System message": "Be brief.", "Temperature": "0.25", "top_p": "0.5",
                         "Most tokens": "77", "Seed": "7"}.items():  # fmt: skip
        page.get_by_label(label).fill(value)
    page.get_by_role("button", name="Done").click()
    page.get_by_label("Model").select_option("scripted-small:local")
    page.reload()
    visit.finish("hello")
    (job,) = library.jobs
    assert (job.sampling.temperature, job.sampling.top_p, job.sampling.seed) == (0.25, 0.5, 7)
    assert (job.max_tokens, job.policy) == (77, "local")
    assert job.messages[0].content == "Be brief."


# --- what goes wrong ----------------------------------------------------------------------------------


def test_token_leaves_the_address(visit: Visit) -> None:
    assert visit.page.url == visit.url
    assert visit.page.evaluate("localStorage.getItem('sr-edge.token')") == TOKEN


def test_visitor_without_the_token_is_asked_for_it(visit: Visit) -> None:
    visit.context.clear_cookies()
    visit.page.evaluate("localStorage.clear()")
    page = visit.tab(token=None)
    dialog = page.get_by_role("dialog")
    expect(dialog).to_contain_text("--print-token")
    dialog.get_by_label("Token").fill("wrong")
    dialog.get_by_label("Token").press("Enter")
    expect(dialog).to_contain_text("does not fit")
    dialog.get_by_label("Token").fill(TOKEN)
    dialog.get_by_role("button", name="Go on").click()
    expect(dialog).to_be_hidden()
    visit.finish("hello", page)


def test_server_that_is_away_loses_nothing(visit: Visit, server: Served) -> None:
    visit.finish("hello")
    visit.page.route("**/v1/chat/completions", lambda route: route.abort("connectionrefused"))
    answer = visit.finish("Ida fills bags")
    expect(answer.get_by_role("alert")).to_contain_text("does not answer")
    visit.page.unroute("**/v1/chat/completions")
    answer.get_by_role("button", name="Try again").click()
    expect(said(answer)).to_have_text("The answer is 205.")
    expect(visit.page.locator(".turn")).to_have_count(4)


def test_page_that_finds_no_server_says_so_and_tries_again(visit: Visit) -> None:
    page, note = visit.page, visit.page.locator("#note")
    page.route("**/v1/models", lambda route: route.abort("connectionrefused"))
    page.reload()
    expect(note).to_contain_text("does not answer")
    page.unroute("**/v1/models")
    note.get_by_role("button", name="Try again").click()
    expect(note).to_be_hidden()
    visit.finish("hello")


def test_busy_server_says_how_long_to_wait(visit: Visit, library: Library) -> None:
    library.busy.append(Busy("all lanes are taken", retry_after=1))
    answer = visit.finish("hello")
    expect(answer.get_by_role("alert")).to_contain_text("wait 1 second")
    answer.get_by_role("button", name="Try again").click()
    expect(said(answer)).to_contain_text("big world")


def test_answer_that_breaks_off_keeps_what_came(visit: Visit, scenes: dict[str, Scene]) -> None:
    scenes["broken"] = Scene(
        "This answer breaks off somewhere, and what came is kept.", pause, breaks_after=40
    )
    answer = visit.finish("broken")
    expect(said(answer)).to_contain_text("This answer breaks off")
    expect(answer.get_by_role("alert")).to_contain_text("The model's file is damaged")
    visit.page.reload()
    expect(said(visit.page.locator(".answer"))).to_contain_text("This answer breaks off")
    expect(visit.page.get_by_role("alert").get_by_role("button", name="Go on")).to_be_visible()


# --- how it looks -------------------------------------------------------------------------------------

STRUCTURE = """(root) => {
    const copy = root.cloneNode(true);
    for (const piece of copy.querySelectorAll(".by")) {
        const next = piece.nextSibling;
        if (next?.classList?.contains("by") && next.dataset.span === piece.dataset.span) {
            next.prepend(...piece.childNodes);
            piece.remove();
        }
    }
    const lines = copy.querySelectorAll("code > span:not([class])");
    for (const line of lines) line.replaceWith(...line.childNodes);
    copy.normalize();
    return copy.innerHTML;
}"""


def test_markdown_and_formulas_are_drawn_and_model_text_is_never_html(visit: Visit) -> None:
    answer = visit.finish("tour")
    text = said(answer)
    for selector, texts in {
        "h4": ["A short ◆2tour"],
        "strong > em": ["Both."],
        "s": ["struck"],
        "p > code": ["code"],
        "ol > li": 4,
        "ol > li > ul > li": 2,
        "blockquote strong .by": ["remote"],
        "math[display=block]": 3,
        "math mfrac": 5,
        "mtable mtr": 4,
        ".tex": ["$\\foo{x}$", "\\(half ◆6of it\\)"],
        ".fence code .by": 1,
        "table tr": 3,
        "hr": 1,
        "img, script, a, b": 0,
    }.items():
        if isinstance(texts, int):
            expect(text.locator(selector)).to_have_count(texts)
        else:
            expect(text.locator(selector)).to_have_text(texts)
    expect(text).to_contain_text("5*3*2 stays, and so does a<b>c</b>. It costs $5 or $6.")
    expect(text).to_contain_text("A link (https://example.org/a_(b)) is text.")
    expect(text).to_contain_text("<script>document.title='hit'</script>")
    assert "hit" not in visit.page.title()
    badges = answer.locator(".badge").all_inner_texts()
    assert badges == [f"◆{n}" for n in range(1, len(badges) + 1)], "each span is signed once, where it begins"


def test_no_words_of_a_model_stop_the_page(visit: Visit, scenes: dict[str, Scene]) -> None:
    """A small model goes round in circles, and a name of JavaScript's own is no command of LaTeX."""
    deep = "> " * 1500 + "deep\n\n" + "- " * 400 + "down\n\n"
    scenes["odd"] = Scene(deep + r"So $\constructor$ and $\begin{valueOf} x \end{valueOf}$ end it.")
    answer = visit.finish("odd")
    for text in (said(answer), said(visit.page.locator(".answer"))):
        expect(text).to_contain_text("deep")
        expect(text).to_contain_text("down")
        expect(text.locator(".tex")).to_have_text(["$\\constructor$", r"$\begin{valueOf} x \end{valueOf}$"])
        visit.page.reload()


@pytest.mark.parametrize(
    "attack",
    [
        "document.body.innerHTML = '<img src=x>'",
        "const one = document.createElement('script'); one.text = 'hit = 1'; document.body.append(one)",
        "document.body.setAttribute('onclick', 'hit = 1'); document.body.click()",
        "await fetch('http://127.0.0.1:9/')",
        "const image = new Image(); image.src = '/?' + document.title; await image.decode()",
    ],
)
def test_policy_stops_what_would_get_in_or_out(visit: Visit, attack: str) -> None:
    """Even a fault of the page would not let a model's words run, or leave for elsewhere."""
    js = f"async () => {{ try {{ {attack} }} catch (error) {{ return String(error); }} return typeof hit; }}"
    said_ = visit.page.evaluate(js)
    assert said_ == "undefined" or "Error" in said_
    assert visit.complaints, "the browser reports what it refused"
    visit.complaints.clear()


@pytest.mark.parametrize("chunk", [1, 7])
def test_streamed_answer_looks_as_it_does_when_it_is_opened_again(
    visit: Visit, scenes: dict[str, Scene], chunk: int
) -> None:
    ticks = cycle([pause, *[lambda: None] * (chunk - 1)])
    scenes["tour"].pace = lambda: next(ticks)()
    answer = visit.finish("tour")
    streamed = said(answer).evaluate(STRUCTURE), answer.locator(".think .prose").evaluate(STRUCTURE)
    visit.page.reload()
    answer = visit.page.locator(".answer")
    opened = said(answer).evaluate(STRUCTURE), answer.locator(".think .prose").evaluate(STRUCTURE)
    assert streamed == opened
    assert all(streamed)


def test_what_is_written_is_not_drawn_again(visit: Visit, scenes: dict[str, Scene]) -> None:
    paragraph = "A line of text that is quite long, as they are.\n\n"
    pace = Pace(4 * len(paragraph))
    scenes["long"] = Scene(paragraph * 60, pace)
    answer = visit.ask("long")
    expect(said(answer).locator("p")).to_have_count(4)
    watch = """(root) => {
        root.firstElementChild.isTheSame = true;
        root.taken = 0;
        new MutationObserver((changes) => {
            for (const change of changes) root.taken += change.removedNodes.length;
        }).observe(root, {childList: true});
    }"""
    said(answer).evaluate(watch)
    pace.open()
    over(answer)
    expect(said(answer).locator("p")).to_have_count(60)
    assert said(answer).evaluate("(root) => root.firstElementChild.isTheSame")
    assert said(answer).evaluate("(root) => root.taken") < 56 * len(paragraph) / 4, (
        "once a frame, not once a token"
    )


def contrast(page: Any, selector: str) -> float:
    """WCAG's, of the text with the page's ground. Colours are painted, since they come in many notations."""
    return page.evaluate(
        """(selector) => {
        const paint = document.createElement("canvas").getContext("2d", {willReadFrequently: true});
        const light = (colour) => {
            paint.fillStyle = colour;
            paint.fillRect(0, 0, 1, 1);
            const [r, g, b] = [...paint.getImageData(0, 0, 1, 1).data].map((n) => n / 255)
                .map((n) => n <= 0.03928 ? n / 12.92 : ((n + 0.055) / 1.055) ** 2.4);
            return 0.2126 * r + 0.7152 * g + 0.0722 * b;
        };
        const text = light(getComputedStyle(document.querySelector(selector)).color);
        const ground = light(getComputedStyle(document.body).backgroundColor);
        return (Math.max(text, ground) + 0.05) / (Math.min(text, ground) + 0.05);
    }""",
        selector,
    )


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_words_can_be_read_in_light_and_dark(chromium: Any, server: Served, scheme: str) -> None:
    visit = Visit(chromium, address(server), color_scheme=scheme)
    visit.finish("hello")
    for selector in ("body", ".answer .prose .by", ".facts", "#title", "#model"):
        assert contrast(visit.page, selector) >= 4.5, selector
    ground = "rgb(255, 255, 255)" if scheme == "light" else "rgb(18, 20, 23)"
    expect(visit.page.locator("body")).to_have_css("background-color", ground)
    visit.page.get_by_role("button", name="Settings").click()
    visit.page.get_by_label("Colours").select_option("dark")
    expect(visit.page.locator("body")).to_have_css("background-color", "rgb(18, 20, 23)")
    visit.context.close()


def test_page_fits_a_phone(chromium: Any, server: Served) -> None:
    visit = Visit(
        chromium, address(server), viewport={"width": 360, "height": 700}, has_touch=True, is_mobile=True
    )
    page = visit.page
    box = page.get_by_role("textbox", name="Your message")
    box.fill("tour")
    page.get_by_role("button", name="Send").click()
    over(page.locator(".answer"))
    assert page.evaluate("document.documentElement.scrollWidth") == 360
    assert page.evaluate("document.querySelector('#talk').scrollWidth <= 360")
    expect(page.locator("#side")).to_be_hidden()
    page.get_by_role("button", name="Conversations").click()
    expect(page.locator("#chats .open")).to_have_text(["tour"])
    page.get_by_role("button", name="New chat").click()
    expect(page.locator("#side")).to_be_hidden()
    expect(page.locator("#welcome")).to_be_visible()
    visit.context.close()
    assert not visit.complaints
