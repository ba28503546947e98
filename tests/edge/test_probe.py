"""What the probe makes of each documented server, and that a span reads on by what it found."""

import functools
import json
import re

import pytest
from tests.edge.dialect_servers import (
    ALPHABET,
    MANNERS,
    QUESTION,
    SERVERS,
    TABLE,
    TEXT,
    THOUGHT,
)

from sr_edge.remote.dialects import Capabilities, Quirks, request
from sr_edge.remote.probe import LEAD, LETTERS, Heard, survey
from sr_edge.remote.reply import ReplyReader
from sr_edge.remote.seam import Seam
from sr_edge.remote.sse import ServerSentEvent
from sr_edge.roles import Message, Prompt

OPEN, CLOSE = "<think>\n", "\n</think>\n\n"


def renderer(opening):
    """The local model's template, which the servers with raw completions happen to share."""

    def render(messages):
        turns = "".join(f"<|{m.role}|>{m.content}<|end|>" for m in messages)
        return Prompt((), f"{turns}<|assistant|>{opening}", opening)

    return render


def heard_of(status, said):
    """What a driver tells the survey."""
    if status != 200:
        return Heard(status, json.dumps(said))
    told = {"text": "", "reasoning": ""}
    finish, has_usage = None, False
    for event in said:
        has_usage |= "usage" in event
        for choice in event["choices"]:
            finish = choice["finish_reason"] or finish
            part = choice.get("delta", choice)
            told["text"] += part.get("content") or part.get("text") or ""
            told["reasoning"] += part.get("reasoning_content") or part.get("reasoning") or ""
    return Heard(200, finish=finish, has_usage=has_usage, **told)


def surveyed(answer, *, opening=OPEN, full=False, host="example.org:8000", **options):
    """What was found out, and the trials that it took."""
    asking = survey(
        model="m", opening=opening, host=host, completions=renderer(opening), full=full, **options
    )
    trials = []
    try:
        trial = next(asking)
        while True:
            trials.append(trial)
            trial = asking.send(answer(trial))
    except StopIteration as stopped:
        return stopped.value, trials


@functools.cache
def by(name, **options):
    row = SERVERS[name]
    return surveyed(lambda trial: heard_of(*row.answer(trial.path, trial.body)), **options)


# --- what is found out --------------------------------------------------------------------------------------

FOUND = {
    # server: thought, text (chat only); thought, text (every row)
    "vllm": ("vllm-think", "vllm-think", "completions", "completions"),
    "vllm r1": ("vllm-think", "vllm-plain", "completions", "completions"),
    "vllm without completions": ("vllm-think", "vllm-think", "vllm-think", "vllm-think"),
    "vllm r1 without completions or parser": ("vllm-think", "vllm-plain", "vllm-think", "vllm-plain"),
    "vllm r1 with the parser of r1": ("vllm-think", "instruct", "vllm-think", "instruct"),
    "vllm qwen3 without completions": ("vllm", "vllm", "vllm", "vllm-think"),
    "sglang": ("vllm", "vllm", "completions", "completions"),
    "sglang without completions": ("vllm", "vllm", "vllm", "vllm"),
    "llama.cpp": ("reasoning", "reasoning", "completions", "completions"),
    "llama.cpp without completions": ("reasoning", "reasoning", "reasoning", "reasoning"),
    "llama.cpp qwen3 without completions": ("reasoning", "reasoning", "reasoning", "reasoning"),
    "llama.cpp of an unknown template": 4 * ("vllm",),
    "llama.cpp old": ("vllm", "vllm", "vllm", "vllm"),  # flags that it does not know do no harm
    "llama.cpp old qwen3": 4 * ("trailing-no-think",),
    "ollama": 4 * ("vllm-think",),
    "lm studio": ("instruct", "instruct", "completions", "completions"),
    "deepseek": 4 * ("prefix-reasoning",),
    "mistral": 4 * ("prefix",),
    "kimi": 4 * ("partial",),
    "qwen": 4 * ("partial",),
    "groq": 4 * ("trailing-think",),
    "openrouter": 4 * ("vllm-think",),
    "openai": 4 * ("instruct",),
    "openai reasoning": 4 * ("instruct",),
    "claude 4.5": 4 * ("vllm-think",),
    "claude 4.6": 4 * ("instruct",),
    "litellm": 4 * ("prefix",),
    "chat of r1 without parser": 4 * ("instruct-aloud",),
    "chat with thoughts": 4 * ("instruct",),
} | {f"chat, {manner}": 4 * ("instruct",) for manner in MANNERS}


@pytest.mark.parametrize("name", SERVERS)
def test_each_server_is_asked_by_the_first_row_that_it_continues(name):
    chat, _ = by(name)
    every, trials = by(name, full=True)
    assert (chat.thought, chat.text, every.thought, every.text) == FOUND[name]
    assert {t.path for t in trials} == {"/completions", "/chat/completions"}
    assert len({json.dumps(t.body) for t in trials}) == len(trials), "nothing is asked twice"


def test_the_quick_survey_takes_few_requests():
    sizes = {name: len(by(name)[1]) for name in SERVERS}
    assert max(sizes.values()) <= 14
    assert sizes["llama.cpp"] == 2
    assert sizes["claude 4.6"] == 3
    assert sizes["chat, plain"] == 4, "one row, all flags at once, then a turn of its own"
    assert len(by("chat, plain", opening="")[1]) == 3


@pytest.mark.parametrize("name", SERVERS)
def test_a_survey_that_is_broken_off_goes_on_where_it_was(name):
    """After every single trial, by way of the disk."""
    row, so_far, sent = SERVERS[name], None, []
    for _ in range(20):
        known = so_far and Capabilities.from_json(json.loads(json.dumps(so_far.to_json())))
        quirks = known.quirks if known else None
        asking = survey(model="m", opening=OPEN, host="example.org", completions=renderer(OPEN), full=False,
                        quirks=quirks, so_far=known)  # fmt: skip
        try:
            trial = next(asking)
            sent.append(json.dumps(trial.body))
            while True:
                trial = asking.send(heard_of(*row.answer(trial.path, trial.body)))
                if len(trial.so_far.findings) > len(known.findings if known else ()):
                    break
                sent.append(json.dumps(trial.body))
        except StopIteration as stopped:
            found = stopped.value
            break
        so_far = trial.so_far
        assert so_far.text is None
    whole = by(name)[0]
    assert (found.thought, found.text, found.echoes) == (whole.thought, whole.text, whole.echoes)
    assert dict(found.findings).items() <= dict(whole.findings).items() | {("every-flag", "refused")}
    assert len(sent) <= 2 * len(by(name)[1])


def test_findings_that_mean_nothing_any_more_are_not_gone_by():
    old = Capabilities(None, None, findings=(("gone", "continues"), ("vllm-think", "perhaps")))
    assert surveyed(weak, so_far=old)[1] == surveyed(weak)[1]


def test_no_text_of_a_user_is_in_a_trial():
    for name in SERVERS:
        for trial in by(name, full=True)[1]:
            sent = json.dumps(trial.body)
            assert "alphabet" in sent
            assert "wagon" not in sent


def test_what_is_known_of_a_server_besides():
    assert by("mistral")[0].echoes
    assert not by("kimi")[0].echoes
    assert by("lm studio", full=True)[0].has_usage is False
    assert by("deepseek")[0].has_usage is True
    assert by("mistral", full=True)[0].quirks.left_out == {"stream_options", "reasoning_effort"}
    assert by("chat with thoughts")[0].quirks.thinks_first
    assert not by("claude 4.6")[0].quirks.thinks_first
    assert by("openai reasoning")[0].quirks == Quirks(frozenset({"temperature"}), has_new_limit=True)


@pytest.mark.parametrize(
    ("name", "finding"),
    [
        ("ollama", ("completions", "restarts")),
        ("openai", ("vllm-think", "refused")),
        ("openai", ("trailing-think", "restarts")),
        ("claude 4.6", ("trailing", "refused")),
        ("vllm qwen3 without completions", ("vllm-think+think", "restarts")),
        ("vllm r1 with the parser of r1", ("vllm-plain", "leaked")),
        ("mistral", ("prefix", "echoes")),
        ("deepseek", ("trailing-plain+think", "restarts")),
        ("llama.cpp old qwen3", ("trailing-plain", "refused")),
        ("chat of r1 without parser", ("instruct", "other")),
    ],
)
def test_the_findings_tell_a_new_turn_from_a_refusal_and_an_echo(name, finding):
    assert finding in by(name, full=True)[0].findings


@pytest.mark.parametrize(
    ("told", "thought", "text"),
    [
        ({"text": " g h i j"}, "continues", "continues"),
        ({"text": "g"}, "continues", "continues"),
        ({"text": "G, H, I"}, "continues", "continues"),
        ({"reasoning": " g h i j"}, "continues", "leaked"),
        ({"text": "<think>\ng h i"}, "continues", "continues"),
        ({"text": "Here it goes: a b c d e f g h"}, "echoes", "echoes"),
        ({"text": "a b c d e f g h"}, "restarts", "restarts"),
        ({"text": "Sure! a, b, c"}, "restarts", "restarts"),
        ({"reasoning": "Well.", "text": "a b c"}, "restarts", "restarts"),
        ({"reasoning": "Well, they want"}, "other", "leaked"),
        ({"text": "</think>\n\na b c"}, "leaked", "leaked"),
        ({"text": ""}, "silent", "silent"),
        ({"text": " \n"}, "silent", "silent"),
        ({"text": "good morning"}, "other", "other"),
        ({"text": "g u e s s"}, "other", "other"),
    ],
)
def test_verdicts(told, thought, text):
    findings = dict(surveyed(lambda trial: Heard(200, **told), full=True)[0].findings)
    assert (findings["vllm-think+think"], findings["vllm-think"]) == (thought, text)


@pytest.mark.parametrize("name", SERVERS)
def test_a_model_without_an_opening_is_asked_for_text_only(name):
    found, trials = by(name, opening="")
    assert found.thought is None
    assert not any(t.name.endswith("+think") for t in trials)
    assert found.dialect(thinking=True) == found.dialect(thinking=False)


# --- what to do where nothing is found out ------------------------------------------------------------------


def weak(trial):
    """A model that can't recite, behind a server that takes everything."""
    return Heard(200, text=" I like trains. I like trains. I like", finish="length")


def test_a_model_that_cannot_recite_is_asked_by_what_is_documented_or_accepted():
    assert surveyed(weak)[0].text == "vllm-think"
    assert surveyed(weak, full=True)[0].text == "completions"
    assert surveyed(weak, host="api.moonshot.ai")[0].text == "partial"
    assert surveyed(weak, host="api.deepseek.com:443")[0].thought == "prefix-reasoning"
    assert surveyed(weak, host="my.ollama:11434")[0].text == "trailing-plain"

    def without_flags(trial):
        refusal = Heard(400, "Unrecognized request argument supplied: continue_final_message")
        return refusal if "continue_final_message" in trial.body else weak(trial)

    assert surveyed(without_flags)[0].text == "instruct", "servers ignore marks that they do not know"


def test_a_model_that_can_recite_is_not_asked_by_what_only_looks_accepted():
    def answer(trial):
        asked = "draft" in json.dumps(trial.body["messages"])
        return Heard(200, text=" g h i j" if asked else "Sorry, I don't follow.")

    assert surveyed(answer)[0].text == "instruct"

    def begins_anew(trial):  # and says nothing within the limit where it is asked
        if "draft" in json.dumps(trial.body["messages"]):
            return Heard(200, finish="length")
        is_marked = "prefix" in trial.body["messages"][-1]
        return Heard(200, text="Sure! a b c d e" if is_marked else "Sorry, I don't follow.")

    assert surveyed(begins_anew)[0].text == "instruct"


def test_where_everything_is_refused_the_last_rung_is_left():
    for status in (400, 404, 405, 422, 501):
        found, trials = surveyed(lambda trial, status=status: Heard(status, "no"), full=True)
        assert (found.thought, found.text, found.has_usage) == ("instruct", "instruct", None)
        if status in (404, 405, 501):
            assert len(trials) == 2, "a path that is not there is asked for once"


def test_a_host_that_documents_that_nothing_continues_is_asked_by_a_turn_at_once():
    row = SERVERS["openai reasoning"]
    found, trials = surveyed(
        lambda trial: heard_of(*row.answer(trial.path, trial.body)), host="api.openai.com"
    )
    assert (found.thought, found.text) == ("instruct", "instruct")
    assert {t.name for t in trials} <= {"instruct", "instruct+think"}


def test_a_refusal_that_never_ends_does_end():
    def answer(trial):
        return Heard(400, "unsupported parameters: " + " ".join(trial.body))

    found, trials = surveyed(answer, full=True)
    assert found.text == "instruct"
    assert len(trials) < 40


def test_what_is_no_answer_is_not_heard():
    with pytest.raises(AssertionError):
        surveyed(lambda trial: Heard(503, "overloaded"))


# --- a span by what was found out ---------------------------------------------------------------------------


def span(row, found, answer, *, opening=OPEN, max_tokens=500):
    """The text of one span, as `ReplyReader` tells it, and the dialect."""
    thinking = opening == OPEN and "</think>" not in answer
    dialect = found.dialect(thinking)
    messages = [Message("user", QUESTION)]
    prompt = renderer(opening)(messages)
    options = {
        "messages": messages,
        "prompt": prompt,
        "answer": answer,
        "max_tokens": max_tokens,
        "model": "m",
    }
    options["sampling"] = {"temperature": 0.6, "top_p": 0.9, "seed": 7}
    quirks = found.quirks
    body = request(dialect, quirks, **options)
    while (reply := row.answer(dialect.path, body))[0] != 200:
        quirks = quirks.after_refusal(reply[0], json.dumps(reply[1]), body)
        assert quirks is not None, reply
        body = request(dialect, quirks, **options)
    seam = Seam(answer, dialect=dialect, opening=opening, prompt=prompt.text, echoes=found.echoes)
    reader = ReplyReader(thinking=thinking, seam=seam)
    text = ""
    for event in reply[1]:
        text += reader.push(ServerSentEvent(json.dumps(event))) or ""
        if reader.left_thought:
            break
    return text + reader.flush(), dialect


def cuts(known, row):
    """Before, within and after the whitespace between words: within words a turn can't tell."""
    for space in re.finditer(r"(?<=\S)\s+", known):
        if row.manner == "fence" and known[: space.start()].endswith(":"):
            continue  # it may well be code
        yield from {space.start(), space.start() + 1, space.end()}


def reads_on(text, expected, dialect, answer):
    """A turn of its own does not tell which whitespace it begins with: it is what the answer ends in, or one
    space."""
    if not dialect.is_asking:
        return text == expected
    gap = "" if answer[-1].isspace() else text[: len(text) - len(text.lstrip())]
    return (
        text.strip() == expected.strip() and (gap == " " or gap == expected[: len(gap)]) and text[:2] != "  "
    )


CASES = [(name, False) for name in SERVERS] + [
    (n, True) for n, found in FOUND.items() if found[:2] != found[2:]
]


@pytest.mark.parametrize(("name", "full"), CASES)
def test_a_thought_reads_on(name, full):
    row = SERVERS[name]
    found, _ = by(name, full=full)
    for end in cuts(THOUGHT, row):
        text, dialect = span(row, found, THOUGHT[:end])
        text = text.removesuffix(CLOSE + TEXT)
        assert reads_on(text, THOUGHT[end:], dialect, THOUGHT[:end]), (THOUGHT[:end], text, dialect)


@pytest.mark.parametrize(("name", "full"), CASES)
def test_a_text_after_a_thought_reads_on(name, full):
    row = SERVERS[name]
    found, _ = by(name, full=full)
    for end in cuts(TEXT, row):
        text, dialect = span(row, found, THOUGHT + CLOSE + TEXT[:end])
        assert reads_on(text, TEXT[end:], dialect, TEXT[:end]), (TEXT[:end], text, dialect)


@pytest.mark.parametrize("name", SERVERS)
def test_a_text_without_a_thought_reads_on(name):
    row = SERVERS[name]
    found, _ = by(name, opening="")
    for end in cuts(TEXT, row):
        text, dialect = span(row, found, TEXT[:end], opening="")
        text = text.removesuffix(CLOSE + TEXT)  # a template that opens a thought makes it one
        assert reads_on(text, TEXT[end:], dialect, TEXT[:end]), (TEXT[:end], text, dialect)


PREFILLS = [row.name for row in TABLE if not any(name.startswith("instruct") for name in FOUND[row.name])]


@pytest.mark.parametrize("name", PREFILLS)
def test_a_continuation_reads_on_in_the_middle_of_a_word(name):
    row = SERVERS[name]
    found, _ = by(name)
    for end in range(1, len(THOUGHT), 3):
        text, dialect = span(row, found, THOUGHT[:end])
        assert text.removesuffix(CLOSE + TEXT) == THOUGHT[end:], dialect


@pytest.mark.parametrize("name", SERVERS)
def test_a_trial_and_a_span_are_cut_at_their_limit(name):
    row = SERVERS[name]
    found, _ = by(name)
    dialect = found.dialect(thinking=True)
    if found.quirks.has_new_limit or dialect.thinks_aloud or row.thinks or row.echoes:
        return  # part of the limit is for other things
    text, _ = span(row, found, THOUGHT[:56], max_tokens=5)
    assert len(text.split()) <= 5


def test_the_mind_knows_what_the_trials_ask_for():
    assert ALPHABET.startswith(LEAD + LETTERS)
