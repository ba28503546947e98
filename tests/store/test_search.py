"""Search: what is found where, in which scripts, and that nothing a user types is an operator."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from sr_edge.events import Finished, LocalToken, Started
from sr_edge.store import Hit, Store


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    with Store.open(tmp_path_factory.mktemp("search") / "history.db") as store:
        yield store


def keep(store: Store, prompt: str, text: str = "", *, ends: bool = True) -> str:
    asked = store.say(store.new_conversation(prompt[:20]).id, None, prompt)
    recorder = store.begin(asked.id, policy="auto", seed=None)
    for event in (Started((1,), "small", opening="<think>"), LocalToken(1, text, -0.1)):
        recorder.add(event)
    if ends:
        recorder.add(Finished("stop", 1, 1, 0, 0.1))
    recorder.close()
    return recorder.turn


def found(hits: list[Hit]) -> list[str]:
    return [hit.snippet.replace("\x02", "[").replace("\x03", "]") for hit in hits]


def test_prompts_and_answers_are_found_and_reasoning_apart(store: Store) -> None:
    turn = keep(store, "how many marbles", "the urn holds twelve</think>There are **twelve** marbles.")
    assert found(store.search("marbles")) == ["There are **twelve** [marbles].", "how many [marbles]"]
    assert [hit.role for hit in store.search("marbles")] == ["assistant", "user"]
    assert store.search("urn") == []
    assert found(store.search("urn", reasoning=True)) == ["the [urn] holds twelve"]
    assert store.search("urn", reasoning=True)[0].turn == turn
    assert store.search("urn", reasoning=True)[0].conversation.title == "how many marbles"


@pytest.mark.parametrize(
    ("text", "query", "snippet"),
    [
        ("quadratic equations", "quadr", "[quadratic] equations"),
        ("quadratic residues", "RESID quad", "[quadratic] [residues]"),
        ("Écoute l'étude", "etude", "Écoute l'[étude]"),
        ("what is 7^2024 mod 100", "7^20", "what is [7^2024] mod 100"),
        ("求前一百个整数的和", "整数", "求前一百个[整数]的和"),
        ("立方数の和を求めよ", "の和", "立方数[の和]を求めよ"),
        ("정수의 합을 구하라", "정수", "[정수의] 합을 구하라"),
        ("หาผลรวมของจำนวนเต็ม", "จำนวน", "หาผลรวมของ[จำนวน]เต็ม"),
        ("a smile 😀 in it", "😀", "a smile [😀] in it"),
        ('say "NEAR" to me', 'NEAR("', 'say "[NEAR]" to me'),
        ("half\x00way", "way", "half [way]"),
    ],
)
def test_words_are_found(store: Store, text: str, query: str, snippet: str) -> None:
    keep(store, text)
    assert found(store.search(query))[0] == snippet


def test_all_words_must_be_there(store: Store) -> None:
    keep(store, "only one zebra")
    assert store.search("zebra giraffe") == []


def test_characters_of_one_word_stand_together(store: Store) -> None:
    keep(store, "整理数据")
    assert all("整理数据" not in snippet for snippet in found(store.search("整数")))


HOSTILE = ['"', "'", "NEAR(a b", "a OR", "AND", "NOT x", "*", "-", "c:x", "{a}", "^", "\x00", "(", "\ud800"]


@settings(max_examples=200)
@given(text=st.text() | st.lists(st.sampled_from([*HOSTILE, "a", "😀"])).map("".join))
@example(text='" OR 1=1; DROP TABLE turn; --')
@example(text="a" * 10_000)
@example(text="\ud800")
def test_nothing_that_is_typed_is_an_error(store: Store, text: str) -> None:
    for reasoning in (False, True):
        assert isinstance(store.search(text, reasoning=reasoning), list)


LETTERS = st.characters(max_codepoint=0x24F, categories=["Lu", "Ll", "Nd"])  # those that SQLite knows


@settings(max_examples=40)
@given(words=st.lists(st.text(LETTERS, min_size=3), min_size=1, max_size=4))
def test_what_was_typed_is_found_again(store: Store, words: list[str]) -> None:
    prompt = " ".join(words)
    asked = store.say(store.new_conversation("again").id, None, prompt)
    assert asked.id in [hit.turn for hit in store.search(prompt)]


def test_the_newest_come_first_and_no_more_than_wanted(store: Store) -> None:
    turns = [keep(store, f"ostrich {n}") for n in range(5)]
    hits = store.search("ostrich", limit=3)
    assert found(hits) == ["[ostrich] 4", "[ostrich] 3", "[ostrich] 2"]
    assert len(turns) == 5


def test_answers_that_were_cut_are_found(tmp_path: Path) -> None:
    """Nobody was left to index them."""
    with Store.open(tmp_path / "history.db") as store:
        asked = store.say(store.new_conversation("cut").id, None, "why?")
        recorder = store.begin(asked.id, policy="auto", seed=None)
        recorder.add(Started((1,), "small"))
        recorder.add(LocalToken(1, "because of the pelican", -0.1))
        assert recorder.flush()
        assert store.search("pelican") == []
        recorder._sign.close()  # what the system does when a process dies
        assert [hit.turn for hit in store.search("pelican")] == [recorder.turn]
        assert store.thread(recorder.turn)[-1].status == "cut"
        recorder.close()
