"""A reply reads on from the answer: the same text however it is cut, without repetition or preamble."""

import time

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from sr_edge.remote.dialects import DIALECTS, dialect_named
from sr_edge.remote.seam import MAX_HELD, Seam

OPEN = "<think>\n"
ANSWER = "We know that the train has twelve wagons. So we add up the two numbers"
LONG = "Let us look at it again. " + ANSWER + ", which gives us the number of the seats in all of them"


def join(answer, reply, name="instruct", opening="", cut=1, **options):
    """The text of a reply in pieces of `cut` characters, and what was dropped."""
    seam = Seam(answer, dialect=dialect_named(name), opening=opening, **options)
    pieces = [reply[at : at + cut] for at in range(0, len(reply), cut)]
    return "".join([seam.push(piece) for piece in pieces]) + seam.flush(), seam.dropped


def in_every_cut(answer, reply, name="instruct", opening="", **options):
    results = {join(answer, reply, name, opening, cut, **options) for cut in (1, 2, 3, 7, 1 + len(reply))}
    assert len(results) == 1, results
    return results.pop()


# --- where a turn of its own was asked for ------------------------------------------------------------------

REST = " and get 12."


@pytest.mark.parametrize(
    ("reply", "dropped"),
    [
        ("and get 12.", ()),
        (" and get 12.", ()),
        ("Sure, here is the continuation: and get 12.", ("preamble",)),
        ("Sure! Here's the continuation:\n\nand get 12.", ("preamble",)),
        ("Certainly. and get 12.", ("preamble",)),
        ("Of course! Here is the rest of the answer:\n\nand get 12.", ("preamble",)),
        ("Okay, continuing from where it breaks off: and get 12.", ("preamble",)),
        ("Continuing from where it stops...\n\nand get 12.", ("preamble",)),
        ("Continuation: and get 12.", ("preamble",)),
        ("**Continuation:**\n\nand get 12.", ("preamble",)),
        ("### Continuation\n\nand get 12.", ("preamble",)),
        ("I'll continue the answer:\nand get 12.", ("preamble",)),
        ("Here you go:\n\nand get 12.", ("preamble",)),
        ("Sure, the next step is as follows:\nand get 12.", ("preamble",)),
        ("Sure, here is the continuation:\n```\nand get 12.\n```", ("preamble",)),
        ("```text\nand get 12.\n```\n\nLet me know if I should go on.", ("preamble",)),
        ("```\nand get 12.\n```", ("preamble",)),
        ('Here is the continuation:\n"and get 12."', ("preamble",)),
        ("Here is the continuation:\n“and get 12.”", ("preamble",)),
        ("...and get 12.", ("preamble",)),
        ("… and get 12.", ("preamble",)),
        ("<draft>and get 12.</draft>", ("preamble",)),
        ("</draft>\nand get 12.", ("preamble",)),
        ("and get 12.</draft>", ()),
        ("and get 12.\n</draft>\nI hope this helps!", ()),
        ("<continuation>\nand get 12.\n</continuation>", ("preamble",)),
        ("<think>They want more.</think>\n\nand get 12.", ("think",)),
        ("<think>\n\n</think>\n\nSure! and get 12.", ("think", "preamble")),
        ("the two numbers and get 12.", ("overlap",)),
        ("The two numbers and get 12.", ("overlap",)),
        ("So we add up the two numbers and get 12.", ("overlap",)),
        (ANSWER + " and get 12.", ("echo",)),
        (ANSWER.replace(" ", "  ") + " and get 12.", ("echo",)),
        (ANSWER.replace(" ", "\n") + " and get 12.", ("echo",)),
        ("Sure, here is the continuation:\n\n" + ANSWER + " and get 12.", ("preamble", "echo")),
        (f"<draft>\n{ANSWER}\n</draft>\n\nand get 12.", ("preamble", "echo")),
        (f'"{ANSWER} and get 12."', ("echo",)),
        ("“the two numbers and get 12.”", ("overlap",)),
        ("...the two numbers and get 12.", ("preamble", "overlap")),
        ("Sure, here is the continuation:\n```\nthe two numbers and get 12.\n```", ("preamble", "overlap")),
    ],
)
def test_a_turn_is_made_to_read_on(reply, dropped):
    text, found = in_every_cut(ANSWER, reply)
    assert (text, found) == (REST, dropped)


@pytest.mark.parametrize(
    ("answer", "reply"),
    [
        ("", "Sure! That is easy."),  # nothing was asked to be continued: it is the answer's own beginning
        ("So", "here the sum is: 12"),
        ("First:", "```python\nprint(1)\n```"),
        ("It is.", "Okay, so the sum of 3 and 4 is 7.\nNext"),
        ("It is.", "Let me compute it: 7"),
        ("It is.", "Here are the remaining values: 7"),
        ("It is.", "This is a continuous function: f"),
        ("It is.", "Sure enough, it is 7"),
        ("It is.", "Now we continue with 7"),
        ("We add 1 + 2 +", "... + 100"),
        ("We have 1, 2,", "..., 100"),
        ("It is.", '"Yes", he said, and "no"'),
        ("the cat", "catalogue of all"),
        ("It is", "Continuity of f"),
        ("It is", "</dra he wrote"),
        ("It is", "a < b and `x`"),
    ],
)
def test_what_only_looks_like_a_preamble_is_text(answer, reply):
    text, dropped = in_every_cut(answer, reply)
    assert text.lstrip(" ") == reply
    assert dropped == ()


@pytest.mark.parametrize(
    ("answer", "reply", "text"),
    [
        ("We get", "12", " 12"),
        ("We get.", "Then", " Then"),
        ("We get ", "12", "12"),
        ("We get\n", "12", "12"),
        ("We get\n\n", "\n\n12", "12"),
        ("We get", ", then", ", then"),
        ("We get", ".", "."),
        ("f(", "x", "x"),
        ("f(x", ")", ")"),
        ("a [", "b", "b"),
        ("say “", "yes", "yes"),
        ('say "', "yes", "yes"),
        ('say "yes"', "and", " and"),
        ("\\", "frac", "frac"),
        ("so $", "x = 5$", "x = 5$"),
        ("so $x$", "is", " is"),
        ("so", "$x$ is", " $x$ is"),
        ("so $x", "$ is", "$ is"),
        ("x^", "2", "2"),
        ("x_", "i", "i"),
        ("\\frac{", "1", "1"),
        ("-", "1", "1"),
        ("km/", "h", "h"),
        ("x", "= 3", " = 3"),
        ("we are", "well", " well"),
        ("we", "'re", "'re"),
        ("我们得到", "十二", "十二"),
        ("We get", "\n\n\n\n12", "\n\n12"),
        ("We get", "   12", " 12"),
        ("We get", "\n", ""),
        ("We get", "", ""),
    ],
)
def test_whitespace_at_the_seam_of_a_turn(answer, reply, text):
    assert in_every_cut(answer, reply)[0] == text


def test_a_short_word_may_be_meant_twice_and_a_longer_one_is_a_run_up():
    assert in_every_cut("That is so", "so easy")[0] == " so easy"
    assert in_every_cut("That is very", "very easy")[0] == " easy"
    assert in_every_cut("We have 12 + 3 = 15\n", "15 + 4 = 19")[0] == "15 + 4 = 19", "a new line"
    assert in_every_cut("The values:\n- two wagons", "- two wagons: 70")[0] == ": 70"


def test_a_block_of_code_is_taken_up_inside_of_its_fence():
    answer = "Like this:\n```python\nfor x in y:"
    text, dropped = in_every_cut(answer, "```python\n    print(x)\n```\nDone.")
    assert (text, dropped) == ("\n    print(x)\n```\nDone.", ("preamble",))
    assert in_every_cut(answer + "\n", "```python\n    print(x)\n```")[0] == "    print(x)\n```"


def test_fences_inside_of_a_wrapping_fence_are_text():
    reply = "```markdown\nso:\n\n```python\nprint(1)\n```\n\nDone.\n```\nAnything else?"
    assert in_every_cut("It is", reply)[0] == " so:\n\n```python\nprint(1)\n```\n\nDone."


def test_a_delimiter_that_the_answer_holds_is_text():
    answer = "The file holds <draft>one</draft> and"
    assert in_every_cut(answer, "<draft>two</draft>.")[0] == " <draft>two</draft>."
    assert in_every_cut(answer, "<draft-2>more.</draft-2> Bye")[0] == " more."


# --- where the answer was continued as it stands ------------------------------------------------------------

PREFILLS = ["reasoning", "vllm-think", "vllm", "prefix", "partial", "trailing-plain"]


@pytest.mark.parametrize("name", PREFILLS)
@pytest.mark.parametrize(
    ("answer", "reply", "text"),
    [
        (ANSWER, " and get 12.", " and get 12."),
        (ANSWER, ANSWER + " and get 12.", " and get 12."),
        (ANSWER + "\n\n", ANSWER + "\n\nand get 12.", "and get 12."),
        (LONG, "So we add up the two numbers, which gives us the number of the seats in all of them.", "."),
        ("ha ha", " ha ha", " ha ha"),
        ("very", " very good", " very good"),
        (ANSWER, " the two numbers", " the two numbers"),
        ("calcul", "ate", "ate"),
        ("1", "2", "2"),
        ("Sure", ", here is the continuation: 5", ", here is the continuation: 5"),
        ("It is", " ...and so on", " ...and so on"),
        ("one ", " two", "two"),
        ("one", "  two", " two"),
        ("one ", "two", "two"),
        ("one\n", "\n\ntwo", "\ntwo"),
        ("one\n\n", "\n\ntwo", "two"),
        ("one\n\n", "two", "two"),
        ("one", "\n\n\n\n  two", "\n\n  two"),
        ("def f():\n    ", "\n    return", "return"),
        ("def f():\n    ", "\n        return", "    return"),
        ("one", "\n\n", "\n\n"),
        ("one", "<think>\nWell.\n</think>\n\ntwo", "\n\ntwo"),
        ("one", "</think>\n\ntwo", "\n\ntwo"),
        ("one", " <thing>", " <thing>"),
    ],
)
def test_a_continuation_is_left_as_it_is_but_for_repetitions(name, answer, reply, text):
    assert in_every_cut(answer, reply, name)[0] == text


@pytest.mark.parametrize("name", ["reasoning", "vllm-think", "vllm", "trailing"])
def test_a_thought_that_is_opened_anew_goes_on(name):
    assert in_every_cut(ANSWER, f"<think>\n{ANSWER}, so 12", name, OPEN) == (", so 12", ("think", "echo"))
    assert in_every_cut("One. ", "<think> Two", name, OPEN)[0] == "Two"
    assert in_every_cut("One.", " Two.\n</think>\n\nThree", name, OPEN)[0] == " Two.\n</think>\n\nThree"


def test_where_thoughts_are_sent_as_text_a_think_block_is_the_servers_own():
    for name in ("prefix", "instruct"):
        assert in_every_cut("One. ", "<think>Hm.</think>Two", name, OPEN) == ("Two", ("think",))
        assert in_every_cut("One. ", "<think>Hm.", name, OPEN) == ("", ("think",))
    assert in_every_cut("One. ", "Hm, well.\n</think>\n\nTwo", "instruct-aloud", OPEN) == ("Two", ("think",))


@pytest.mark.parametrize("name", ["vllm-think", "vllm", "prefix", "instruct"])
def test_an_echo_after_a_thought_is_found_however_the_thought_was_sent(name):
    answer = f"Let me see.\n</think>\n\n{ANSWER}"
    sent = {"vllm-think": OPEN + answer, "vllm": answer}.get(name, f"Let me see.\n\n{ANSWER}")
    for echo in (sent, ANSWER):
        assert in_every_cut(answer, echo + " and get 12.", name, OPEN)[0] == " and get 12."


def test_a_server_that_is_known_to_echo_repeats_short_answers_too():
    assert in_every_cut("Yes", "Yes, it is", "prefix")[0] == "Yes, it is"
    assert in_every_cut("Yes", "Yes, it is", "prefix", echoes=True)[0] == ", it is"


# --- raw completions ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answer", "reply", "text"),
    [
        (ANSWER, " and", " and"),
        (ANSWER + " ", "  and", "and"),
        (ANSWER, "  and", "  and"),
        ("f:\n    ", "    x", "    x"),
        ("one\n\n", "\n\ntwo", "\n\ntwo"),
        ("one", "<think>two</think>", "<think>two</think>"),
        (ANSWER, ANSWER + " and", " and"),
        (ANSWER, "P: " + ANSWER + " and", " and"),
        (ANSWER, ANSWER[:-1], ANSWER[:-1]),
        ("ha", " ha", " ha"),
    ],
)
def test_raw_completions_stay_exact_but_for_an_echo_and_doubled_spaces(answer, reply, text):
    assert in_every_cut(answer, reply, "completions", prompt="P: ")[0] == text


def test_an_echo_of_a_long_prompt_is_found_in_no_time():
    prompt = "".join(chr(97 + at * at % 26) for at in range(200_000))
    began = time.monotonic()
    text, _ = join("so", prompt + "so it goes", "completions", prompt=prompt, cut=3)
    assert text == " it goes"
    assert time.monotonic() - began < 5


# --- invariants ---------------------------------------------------------------------------------------------

PIECES = st.sampled_from(
    [
        " ", "\n", "\n\n", "a", "b ", "the ", "two ", "numbers", ", ", ".", "12", "$", '"', "“", "```",
        "```\n", "…", "...", "<think>", "</think>", "<draft>", "</draft>", "</continuation>", "Sure", "! ",
        ":", "Sure, ",
        "here is the continuation:", "Continuing from where it stops", "Okay, ", "é", "数", "\u00a0", ANSWER,
        ANSWER[-20:], ANSWER[:20], "ha ", "(", "-", "\\",
    ]
)  # fmt: skip
TEXTS = st.lists(PIECES, max_size=9).map("".join)
NAMES = st.sampled_from([dialect.name for dialect in DIALECTS])


@settings(max_examples=400, deadline=None)
@given(TEXTS, TEXTS, NAMES, st.sampled_from(["", OPEN]), st.lists(st.integers(1, 9), min_size=1, max_size=30))
@example("", "\n", "instruct", "", [1])
@example(ANSWER, "```\nx\n```\n", "instruct", "", [1])
@example(ANSWER, '"' + ANSWER + '"', "instruct", "", [2])
def test_any_cut_of_a_reply_gives_the_same_text(answer, reply, name, opening, sizes):
    whole, dropped = join(answer, reply, name, opening, len(reply) + 1)
    seam = Seam(answer, dialect=dialect_named(name), opening=opening)
    text, at = "", 0
    for n in range(len(reply)):
        if at >= len(reply):
            break
        size = sizes[n % len(sizes)]
        text += seam.push(reply[at : at + size])
        at += size
    assert (text + seam.flush(), seam.dropped) == (whole, dropped)
    assert join(answer, reply, name, opening, 1)[0] == whole


@settings(max_examples=300, deadline=None)
@given(TEXTS, TEXTS, NAMES, st.sampled_from(["", OPEN]))
def test_text_is_only_taken_away_at_the_ends_and_one_space_put_in(answer, reply, name, opening):
    text, _ = join(answer, reply, name, opening)
    kept = "".join(text.split())
    assert kept in "".join(reply.split()), "nothing is made up, reordered or dropped in the middle"
    if name not in ("completions",) and (opening + answer).strip():
        seam = (opening + answer)[-3:] + text[:3]
        assert "\n\n\n" not in seam or (opening + answer).endswith("\n\n\n")


@settings(max_examples=200, deadline=None)
@given(st.text("abc xyz.", min_size=1, max_size=40), st.text("abc xyz.", max_size=60), NAMES)
def test_a_continuation_without_a_long_repetition_is_kept_in_full(answer, reply, name):
    dialect = dialect_named(name)
    if dialect.is_asking or (len(answer) >= 8 and "".join(reply.split()).startswith("".join(answer.split()))):
        return
    text, dropped = join(answer, reply, name)
    assert dropped == ()
    assert text.split() == reply.split()


@pytest.mark.parametrize("name", [dialect.name for dialect in DIALECTS if not dialect.thinks_aloud])
def test_little_is_held_back(name):
    """And of ordinary text nothing but a word or two."""
    words = "So the sum is 12, and with that we have what we wanted. " * 20
    seam = Seam(ANSWER, dialect=dialect_named(name), opening="")
    held = pushed = 0
    for at, character in enumerate(words, 1):
        pushed += len(seam.push(character))
        held = max(held, at - pushed)
    assert held <= 12
    for start in (
        "Sure, here is the ",
        "Okay, continuing ",
        "here is the sum of ",
        "\n" * 30,
        "Certainly, " * 3,
    ):
        seam = Seam(ANSWER, dialect=dialect_named(name), opening="")
        pushed = [seam.push(character) for character in start + "x " * MAX_HELD]
        assert len("".join(pushed)) > MAX_HELD
