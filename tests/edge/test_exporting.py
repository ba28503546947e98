"""Exports show who wrote what, and no text in them can be more than text."""

from __future__ import annotations

import json
import re
import resource
import stat
from dataclasses import replace
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from markdown_it.token import Token

from sr_edge import exporting
from sr_edge.commands.replay import recorded
from sr_edge.errors import UsageError
from sr_edge.events import Event, Finished, LocalToken, SpanClosed, SpanDelta, SpanOpened, Started
from sr_edge.exporting.parts import of_part, pieces
from sr_edge.report import as_json
from sr_edge.store import Conversation, Turn
from sr_edge.transcript import Transcript, fold


def stream(*texts: str | tuple[str, str] | tuple[str, str, str], opening: str = "<think>\n") -> list[Event]:
    """An answer: a text is the small model's, a pair (remote, text) a span, one more says why it failed."""
    events: list[Event] = [Started(prompt_ids=(1, 2), model="small", big="lab", opening=opening)]
    number = tokens = 0
    for n, text in enumerate(texts):
        if isinstance(text, str):
            events.append(LocalToken(id=n, text=text, logprob=-0.5))
            continue
        number += 1
        remote, written, *error = text
        events.append(SpanOpened(number, "marker", 0.83, remote, sent_tokens=1812, sent_bytes=7200))
        if written:
            events.append(SpanDelta(number, written))
        events.append(
            SpanClosed(
                number,
                ids=(n,),
                end="error" if error else "stop",
                tokens=46 if written else 0,
                remote_prompt_tokens=1800,
                remote_completion_tokens=44,
                cost=None if error else 0.0003,
                ttft=None if error else 0.21,
                seconds=0.9,
                resume=0.05,
                error=error[0] if error else None,
            )
        )
        tokens += 46 if written else 0
    local = sum(isinstance(text, str) for text in texts)
    events.append(Finished("stop", 2, local, tokens, seconds=41.0, local_seconds=30.0))
    return events


EVENTS = stream(
    "We need 7^2024 mod 100. Try ",
    ("lab", "7^4 = 2401, so 7^4 ≡ 1"),
    "\nand 4 divides 2024.",
    ("lab", "", "remote lab: no route"),
    " Check it.</think>\n\nThe digits are ",
    ("den", "01"),
    ".",
)
CONVERSATION = Conversation(
    id="c1", title="Sums of cubes", created=1.7e9, updated=1.7e9 + 60, head="t2", turns=2, model="small"
)


def asked(text: str) -> Turn:
    return Turn(
        id="t1",
        conversation="c1",
        parent=None,
        role="user",
        created=1.7e9,
        text=text,
        status="done",
        transcript=None,
        branch=1,
        branches=1,
        edited=False,
        policy="",
        seed=None,
    )


def answered(transcript: Transcript) -> Turn:
    return Turn(
        id="t2",
        conversation="c1",
        parent="t1",
        role="assistant",
        created=1.7e9 + 1,
        text=transcript.text,
        status="done",
        transcript=transcript,
        branch=2,
        branches=3,
        edited=False,
        policy="auto",
        seed=7,
    )


TURNS = [asked("Find the last two digits of 7^2024."), answered(fold(EVENTS))]


# --- pieces ------------------------------------------------------------------------------------------


def test_pieces_are_in_order_and_in_their_part() -> None:
    shown = [
        (piece.part, piece.voice, piece.span and piece.span.span, piece.text.strip())
        for piece in pieces(fold(EVENTS))
    ]
    assert shown == [
        ("reasoning", "local", None, "We need 7^2024 mod 100. Try"),
        ("reasoning", "remote", 1, "7^4 = 2401, so 7^4 ≡ 1"),
        ("reasoning", "local", None, "and 4 divides 2024."),
        ("reasoning", "fallback", 2, ""),
        ("reasoning", "local", None, "Check it."),
        ("answer", "local", None, "The digits are"),
        ("answer", "remote", 3, "01"),
        ("answer", "local", None, "."),
    ]


def test_a_span_that_ends_the_reasoning_begins_once() -> None:
    shown = pieces(fold(stream("a", ("lab", "b</think>\n\nc"))))
    assert [(piece.part, piece.is_first) for piece in shown if piece.span] == [
        ("reasoning", True),
        ("answer", False),
    ]


texts = st.text(st.sampled_from("ab \n<>/think")) | st.sampled_from(["<think>", "</think>", "x\n", ""])
scripts = st.lists(texts | st.tuples(st.just("lab"), texts), max_size=8)


@given(scripts, st.sampled_from(["", "<think>\n"]))
def test_no_span_and_no_text_is_ever_lost(script: list[str | tuple[str, str]], opening: str) -> None:
    transcript = fold(stream(*script, opening=opening))
    shown = pieces(transcript)
    begun = [piece.span.span for piece in shown if piece.span and piece.is_first]
    assert begun == [span.span for span in transcript.spans]
    everything = "".join(piece.text for piece in shown)
    without_tags = re.sub("</?think>", "", transcript.text)
    assert "".join(re.sub("</?think>", "", everything).split()) == "".join(without_tags.split())
    kept = of_part(shown, "reasoning") + of_part(shown, "answer")
    assert [piece.span.span for piece in kept if piece.span and piece.is_first] == sorted(begun)


# --- HTML --------------------------------------------------------------------------------------------

VOID = {"meta", "br", "hr", "img", "input", "link"}
TAGS = {
    "html", "head", "meta", "title", "style", "body", "header", "h1", "h2", "p", "ul", "li", "b", "section",
    "div", "span", "i", "details", "summary", "dl", "dt", "dd", "small",
}  # fmt: skip
ATTRIBUTES = {
    "lang", "charset", "http-equiv", "content", "name", "class", "style", "role", "aria-label", "open",
}  # fmt: skip


class Page(HTMLParser):
    """The tree of a page, checked while it is read: what is opened is closed, and nothing is unexpected."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[tuple[str, str]] = []
        self.shape: list[str] = []
        self.found: list[tuple[str, str]] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag in TAGS
        assert {name for name, _ in attrs} <= ATTRIBUTES
        self.shape.append(tag)
        if tag not in VOID:
            self.open.append((tag, dict(attrs).get("class") or ""))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop()[0] == tag
        self.shape.append(f"/{tag}")

    def handle_data(self, data: str) -> None:
        if data.strip():
            self.found.append((" ".join(name for _, name in self.open if name), data))

    def handle_comment(self, data: str) -> None:
        raise AssertionError(f"a comment: {data}")

    def text(self, name: str) -> list[str]:
        return [data for classes, data in self.found if name in classes.split()]


def test_html_shows_each_span_with_its_writer() -> None:
    page = Page(exporting.html(CONVERSATION, TURNS))
    written = [(classes, data) for classes, data in page.found if classes.endswith(" text")]
    assert [data for _, data in written] == [
        "Find the last two digits of 7^2024.",
        "We need 7^2024 mod 100. Try ",
        "7^4 = 2401, so 7^4 ≡ 1",
        "and 4 divides 2024.",
        " Check it.",
        "The digits are ",
        "01",
        ".",
        "The digits are 01.",
    ]
    by_text = {data: classes for classes, data in page.found}
    assert "piece remote r0" in by_text["7^4 = 2401, so 7^4 ≡ 1"]
    assert "piece remote r1" in by_text["01"]
    assert "piece local" in by_text["and 4 divides 2024."]
    assert "piece fallback" in by_text["◇2"]
    assert "remote lab: no route; continued locally" in page.text("fallback")
    assert "lab · 46 tokens · 0.9 s · $0.00030" in page.text("r0")


def test_html_needs_nothing_else() -> None:
    text = exporting.html(CONVERSATION, TURNS)
    assert "default-src 'none'" in text
    assert not re.search(r"https?:|url\(|@import|<script|<link|src=", text)
    assert "prefers-color-scheme: dark" in text


def test_html_has_a_class_in_the_style_for_each_in_the_page() -> None:
    text = exporting.html(CONVERSATION, TURNS)
    style, body = text.split("</style>")
    used = {name for names in re.findall(r'class="([^"]*)"', body) for name in names.split()}
    assert used == {name for name in used if f".{name}" in style}


def test_html_shows_the_share_of_each_remote() -> None:
    page = exporting.html(CONVERSATION, TURNS)
    assert "local 4 % · lab 48 % · den 48 % · 3 spans" in page
    assert re.findall(r'<i class="([^"]*)" style="width:([\d.]+)%">', page) == [
        ("local", "4.17"),
        ("remote r0", "47.92"),
        ("remote r1", "47.92"),
    ]


# --- Markdown ----------------------------------------------------------------------------------------


def front_matter(text: str) -> dict[str, object]:
    begin, matter, _ = text.split("---\n", 2)
    assert begin == ""
    pairs = [line.partition(": ") for line in matter.splitlines()]
    return {key: json.loads(value) for key, _, value in pairs}  # of JSON, YAML is a superset


def test_markdown_begins_with_what_it_cost() -> None:
    assert front_matter(exporting.markdown(CONVERSATION, TURNS)) == {
        "title": "Sums of cubes",
        "id": "c1",
        "created": "2023-11-14T22:13:20Z",
        "updated": "2023-11-14T22:14:20Z",
        "models": ["small"],
        "remotes": ["lab", "den"],
        "local_tokens": 4,
        "remote_tokens": 92,
        "remote_share": 0.9583,
        "spans": 3,
        "sent_bytes": 21600,
        "cost_usd": 0.0006,
    }


def test_markdown_marks_each_line_of_a_trace_with_its_writer() -> None:
    text = exporting.markdown(CONVERSATION, TURNS)
    assert (
        "```text\n"
        "│ We need 7^2024 mod 100. Try\n"
        "┃ ◆1 7^4 = 2401, so 7^4 ≡ 1\n"
        "┃   [lab · 46 tokens · 0.9 s · $0.00030]\n"
        "│ and 4 divides 2024.\n"
        "╎ ◇2 remote lab: no route; continued locally\n"
        "│  Check it.\n"
        "```\n"
    ) in text
    assert "┃ ◆3 01\n┃   [den · 46 tokens · 0.9 s · $0.00030]\n│ .\n" in text
    assert text.endswith("> The digits are 01.\n\n*remote lab: no route; the small model went on alone*\n")


def test_an_answer_without_spans_is_not_traced() -> None:
    text = exporting.markdown(CONVERSATION, [answered(fold(stream("x</think>\n\n**7**")))])
    assert "Who wrote the answer" not in text
    assert "> **7**" in text


def test_markdown_keeps_code_in_an_answer() -> None:
    code = '```c\nif (a<b>c) x = "![y](z)";\n```\nand a<b>c, ![pixel](https://x.example/p)'
    quote = exporting.prose.quoted(code)
    assert quote == (
        '> ```c\n> if (a<b>c) x = "![y](z)";\n> ```\n> and a&lt;b>c, !\\[pixel](https://x.example/p)'
    )


# --- hostile texts -----------------------------------------------------------------------------------

HOSTILE = (
    "</script><script>alert(1)</script>",
    "</div></section></body>",
    "</style><img src=x onerror=alert(1)>",
    '"><img onerror=alert(1) src=x>',
    "' onmouseover='alert(1)",
    "<!-- ",
    "]]>",
    "[/bold][link=x]",
    "\x1b[31m\x1b]0;title\x07",
    "\u202egnp.exe\u2066",
    "\n---\ntitle: owned\n",
    "```\n# out\n",
    "\n``````\n<b>\n",
    "\n~~~\n<script>\n~~~\n",
    "- ```\n```\n",
    "\n ```\n```\n<img src=x>\n",
    "\n```\n\t```\n<img src=x>",
    "\n```\n```\u00a0\n<img src=x>\n```\n",
    "## Prompt\n",
    "\n===\n",
    "![x](https://tracker.example/?q=1)",
    "[x]: https://tracker.example",
    "&lt;script&gt;",
    "{style}{0}%s${x}",
    "\ud800",
    "\x00\x85\u2028",
    "<![CDATA[",
    "<?php ?>",
    "$$x$$",
    "\t",
    "    ",
    "a<b>c",
    "|a|b|\n|-|-|\n",
    ">",
)
hostile = st.lists(st.sampled_from(HOSTILE) | st.text(max_size=4), max_size=6).map("".join)


def conversation_of(
    title: str, prompt: str, answer: list[str], remote: str
) -> tuple[Conversation, list[Turn]]:
    local, reasoned, error, after = answer
    events = stream(local, (remote, reasoned), (remote, "", error), "</think>", after, (remote, after))
    events[0] = replace(events[0], model=title, big=remote)  # type: ignore[type-var]
    return replace(CONVERSATION, title=title, model=title), [asked(prompt), answered(fold(events))]


hostiles = st.builds(
    conversation_of, hostile, hostile, st.lists(hostile, min_size=4, max_size=4), hostile.filter(bool)
)


@given(hostiles)
def test_no_text_gets_out_of_its_place_in_html(made: tuple[Conversation, list[Turn]]) -> None:
    text = exporting.html(*made)
    page = Page(text)
    assert page.shape.count("section") == 2
    assert page.shape.count("style") == 1
    assert page.shape[:3] == ["html", "head", "meta"]
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]", text)


def shown_as(tokens: list[Token]) -> list[Token]:
    return [inner for token in tokens for inner in (token, *(token.children or []))]


@given(hostiles)
def test_no_text_gets_out_of_its_place_in_markdown(made: tuple[Conversation, list[Turn]]) -> None:
    text = exporting.markdown(*made)
    assert set(front_matter(text)) == set(front_matter(exporting.markdown(CONVERSATION, TURNS)))
    body = text.split("---\n", 2)[2]
    tokens = MarkdownIt("commonmark").enable("table").parse(body)
    found = shown_as(tokens)
    assert not [token for token in found if token.type in ("html_block", "html_inline", "image")]
    outside = [token for token in tokens if token.level == 0]
    headings = [
        after.content for before, after in pairwise(tokens)
        if before.type == "heading_open" and before.level == 0
    ]  # fmt: skip
    ours = ("Prompt", "Answer (branch 2 of 3)", "Reasoning: ", "Who wrote the answer")
    assert all(heading.startswith(ours) for heading in headings[1:])
    assert [token.type for token in outside if token.type in ("hr", "code_block", "list_item_open")] == []
    fences = [token for token in outside if token.type == "fence"]
    assert all(token.info == "text" for token in fences)
    marks = ("│", "┃", "╎")
    assert all(line.startswith(marks) for token in fences[1:] for line in token.content.splitlines())
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]", text)


# --- JSON --------------------------------------------------------------------------------------------


def test_json_of_an_answer_is_that_of_ask() -> None:
    made = exporting.as_object(CONVERSATION, TURNS)
    answer = fold(EVENTS)
    assert {name: made["turns"][1][name] for name in as_json(answer)} == as_json(answer)
    assert [part["span"] for part in made["turns"][1]["trail"]] == [None, 1, None, 2, None, 3, None]


@given(hostiles)
def test_json_comes_back_the_same(made: tuple[Conversation, list[Turn]]) -> None:
    text = exporting.json_text(*made)
    assert json.loads(text.encode()) == exporting.as_object(*made)
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]", text)
    back = json.loads(text)["turns"]
    assert back[0]["text"] == made[1][0].text
    assert "".join(part["text"] for part in back[1]["trail"]) == made[1][1].text


@given(hostile, hostile)
def test_json_lines_are_replayed_as_they_were(local: str, remote: str) -> None:
    events = stream(local, ("lab", remote), "</think>", local)
    with TemporaryDirectory() as folder:
        path = exporting.write(Path(folder) / "events.jsonl", exporting.json_lines(events))
        assert list(recorded(path)) == events


# --- files -------------------------------------------------------------------------------------------


def test_an_export_never_replaces_a_file(tmp_path: Path) -> None:
    path = tmp_path / "sums.md"
    assert [exporting.write(path, text).name for text in "abc"] == ["sums.md", "sums-2.md", "sums-3.md"]
    assert [(tmp_path / name).read_text() for name in ("sums.md", "sums-2.md")] == ["a", "b"]
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_an_export_does_not_follow_a_link_that_leads_nowhere(tmp_path: Path) -> None:
    (tmp_path / "a.md").symlink_to(tmp_path / "elsewhere")
    assert exporting.write(tmp_path / "a.md", "x").name == "a-2.md"
    assert not (tmp_path / "elsewhere").exists()


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("missing/x.md", "there is no folder .*missing"),
        ("", "is a folder: name a file in it"),
        ("nul\0.md", "cannot be written: embedded null byte"),
        ("x" * 300, "cannot be written: File name too long"),
    ],
)
def test_an_export_that_cannot_be_written_is_one_line(name: str, reason: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=reason):
        exporting.write(tmp_path / name, "x")


def test_a_write_that_fails_leaves_no_half_export(tmp_path: Path) -> None:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
    try:
        with pytest.raises(UsageError, match="File too large"):
            exporting.write(tmp_path / "x.md", "x" * 2000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("title", "name"),
    [
        ("Sums of cubes", "sums-of-cubes.md"),
        ("../../etc/passwd", "etc-passwd.md"),
        ("Größe: 3 > 2?", "größe-3-2.md"),
        ("***", "conversation.md"),
        ("\x1b]0;x\x07 ..", "conversation.md"),
        ("日本語 の", "日本語-の.md"),
        ("CON", "conversation.md"),
        ("word " * 40, "word-word-word-word-word-word-word-word-word-word-word-word.md"),
        ("x" * 400, "conversation.md"),
    ],
)
def test_a_file_is_named_after_the_conversation(title: str, name: str) -> None:
    assert exporting.file_name(replace(CONVERSATION, title=title), "markdown") == name
