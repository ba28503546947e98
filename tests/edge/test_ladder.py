"""Every documented way to continue a message, over HTTP: the endpoint finds it out, and its spans read on."""

import re

import pytest
from tests.edge.dialect_servers import QUESTION, SERVERS, TEXT, THOUGHT, served

from sr_edge.remote.endpoint import Deadlines, Endpoint
from sr_edge.roles import Message, Prompt

MESSAGES = [Message("user", QUESTION)]
OPEN, CLOSE = "<think>\n", "\n</think>\n\n"
SOON = Deadlines(connect=5.0, first_byte=5.0, first_content=10.0, idle=5.0, linger=0.1)
CUTS = (57, 140, 201)
UNSIGNED = [
    name
    for name, row in SERVERS.items()
    if row.completions == "templated" and not (row.fingerprint or row.signature)
]
"""Their raw completions are none: that is seen by a survey only, or known from their host."""


@pytest.fixture(autouse=True)
def _at_once(monkeypatch):
    monkeypatch.setattr("socketserver.StreamRequestHandler.disable_nagle_algorithm", True)


def prompt(messages):
    """The local model's template, which the servers with raw completions happen to share."""
    turns = "".join(f"<|{m.role}|>{m.content}<|end|>" for m in messages)
    return Prompt((), f"{turns}<|assistant|>{OPEN}", OPEN)


def listen(span):
    pieces = []
    while (piece := span.read(1.0)) is not None:
        pieces.append(piece)
    return "".join(pieces), span.outcome


def check_all_reads_on(remote):
    """In a thought, and in the text after one."""
    for before, whole, after in (("", THOUGHT, CLOSE + TEXT), (THOUGHT + CLOSE, TEXT, "")):
        for about in CUTS:
            cut = re.compile(r"(?<=\S)\s").search(whole, about).start()
            written, outcome = listen(remote.stream(MESSAGES, before + whole[:cut], 500))
            assert outcome.error is None
            expected = whole[cut:]
            written = written.removesuffix(after)
            if remote.capabilities is not None and remote.capabilities.dialect(not before).is_asking:
                # A turn of its own need not tell which whitespace it begins with: then it is a space.
                assert written in (expected, " " + expected.lstrip())
            else:
                assert written == expected, remote.capabilities


@pytest.mark.parametrize("name", [name for name in SERVERS if name not in UNSIGNED])
def test_the_first_span_reads_on_and_so_do_all_others(name):
    with served(name) as url, Endpoint(url, prompt=prompt, model="mind", deadlines=SOON) as remote:
        check_all_reads_on(remote)


@pytest.mark.parametrize("name", SERVERS)
def test_after_a_survey_every_span_reads_on(name):
    with served(name) as url, Endpoint(url, prompt=prompt, model="mind", deadlines=SOON) as remote:
        remote.survey()
        check_all_reads_on(remote)
