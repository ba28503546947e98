"""Reading problems: from the demo task, from files of every shape that published sets have, from the hub."""

import json
from pathlib import Path
from typing import Any

import pytest

from sr_edge.errors import UsageError
from sr_edge.extract import last_boxed, split_reasoning
from sr_edge.suites import demo
from sr_edge.testing import EgressTrap
from sr_train.problems import Problem, ProblemsError, fit_opening, read_problems


def write_lines(path: Path, *rows: dict[str, Any]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return str(path)


@pytest.mark.parametrize("which", ["train", "eval"])
def test_demo_problems_are_solved_in_their_traces(which: str) -> None:
    problems = read_problems(f"demo:{which}", limit=50)
    assert len({problem.id for problem in problems}) == 50
    for problem in problems:
        reasoning, answer = split_reasoning("<think>\n", problem.trace)
        assert last_boxed(answer) == problem.answer
        assert "boxed" not in reasoning
        assert reasoning.strip()


def test_demo_problems_of_two_limits_begin_alike_and_those_of_two_seeds_differ() -> None:
    assert read_problems("demo:train", limit=20)[:5] == read_problems("demo:train", limit=5)
    assert read_problems("demo:train", limit=5, seed=1) != read_problems("demo:train", limit=5)


def test_demo_eval_asks_what_the_command_eval_asks_and_training_never_does() -> None:
    problems = read_problems("demo:eval", limit=200, seed=3)
    assert [problem.question for problem in problems] == [each.question for each in demo.problems(3, 200)]
    trained_on = {problem.question for problem in read_problems("demo:train", limit=500, seed=3)}
    assert not trained_on & {problem.question for problem in problems}


def test_rows_of_every_published_shape(tmp_path: Path) -> None:
    source = write_lines(
        tmp_path / "mixed.jsonl",
        {"question": "own?", "answer": 5},
        {"id": 61, "problem": "aime?", "solution": "So \\boxed{33}.", "answer": "033", "url": "…"},
        {
            "problem": "math?",
            "solution": "…",
            "answer": "\\frac{1}{2}",
            "level": 5,
            "unique_id": "test/a/1.json",
        },
        {"question": "gsm?", "answer": "She has 4/2=<<4/2=2>>2.\n2+1198=<<2+1198=1200>>1200.\n#### 1,200"},
        {"problem": "boxed?", "solution": "It is \\boxed{x_{1}}, so \\boxed{$\\{2\\}$}."},
        {"id": "t", "question": "trace?", "answer": "$7$", "trace": "<think>\n3+4\n</think>\n\\boxed{7}"},
    )
    assert read_problems(source) == [
        Problem("mixed-0", "own?", "5"),
        Problem("61", "aime?", "033", "So \\boxed{33}."),
        Problem("test/a/1.json", "math?", "\\frac{1}{2}", "…"),
        Problem("mixed-3", "gsm?", "1200", "She has 4/2=2.\n2+1198=1200.\n\nThe answer is \\boxed{1200}."),
        Problem("mixed-4", "boxed?", "\\{2\\}", "It is \\boxed{x_{1}}, so \\boxed{$\\{2\\}$}."),
        Problem("t", "trace?", "7", "<think>\n3+4\n</think>\n\\boxed{7}"),
    ]


def openr1(uuid: str, generations: list[str], **flags: list[bool] | None) -> dict[str, Any]:
    given = {"correctness_math_verify": None, "correctness_llama": None, "is_reasoning_complete": None}
    row = {"problem": f"{uuid}?", "solution": "short", "answer": "1", "uuid": uuid}
    return {**row, "generations": generations, **given, **flags}


def test_openr1_gives_its_first_trace_that_is_complete_and_right(tmp_path: Path) -> None:
    source = write_lines(
        tmp_path / "openr1.jsonl",
        openr1("a", ["cut", "wrong", "good", "later"], correctness_math_verify=[True, False, True, True],
               is_reasoning_complete=[False, True, True, True]),
        openr1("judged", ["x", "y"], correctness_math_verify=[False, False], correctness_llama=[False, True],
               is_reasoning_complete=[True, True]),
        openr1("none", ["x"], correctness_math_verify=[False], is_reasoning_complete=[True]),
        openr1("unchecked", ["x"], is_reasoning_complete=[True]),
        openr1("a", ["other"], correctness_math_verify=[True], is_reasoning_complete=[True]),
    )  # fmt: skip
    assert [(problem.id, problem.trace) for problem in read_problems(source)] == [
        ("a", "good"),
        ("judged", "y"),
    ]


def test_a_list_and_a_table_hold_the_same(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    rows = [{"id": str(n), "question": f"{n}?", "answer": str(n)} for n in range(7)]
    as_list, as_table = tmp_path / "p.json", tmp_path / "p.parquet"
    as_list.write_text(json.dumps(rows))
    parquet.write_table(pyarrow.Table.from_pylist(rows), as_table)
    assert read_problems(str(as_list)) == read_problems(str(as_table))
    assert len(read_problems(str(as_table))) == 7
    assert read_problems(str(as_list), limit=3) == read_problems(str(as_list))[:3]


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ({"text": "?"}, "line 2 has no question"),
        ({"question": "?", "solution": "no box"}, "line 2 has no answer"),
        ({"question": "?", "answer": "1", "trace": "a <bigmodel>b</bigmodel>"}, "line 2 holds a marker"),
        ({"id": "first", "question": "other?", "answer": "1"}, "another problem has the id first"),
    ],
)
def test_a_row_that_cannot_be_used_is_named(tmp_path: Path, row: dict[str, Any], says: str) -> None:
    source = write_lines(tmp_path / "p.jsonl", {"id": "first", "question": "?", "answer": "1"}, row)
    with pytest.raises(UsageError, match=says):
        read_problems(source)


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ("demo:test", "there are demo:train and demo:eval"),
        ("nothing.jsonl", "no file nothing.jsonl"),
        ("nothing.parquet", "no file nothing.parquet"),
        ("aime1990", "name demo:train, demo:eval, aime24"),
        ("/somewhere/else", "owner/name"),
    ],
)
def test_a_source_that_is_not_there_is_named(source: str, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        read_problems(source)


@pytest.mark.parametrize(
    ("name", "text"), [("p.json", "{}"), ("p.jsonl", "[1]"), ("p.jsonl", "{"), ("p.jsonl", "")]
)
def test_a_file_of_something_else_is_named(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(UsageError, match=name):
        read_problems(str(tmp_path / name))


def test_a_broken_table_is_named(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    (tmp_path / "p.parquet").write_bytes(b"PAR1 and nothing else")
    with pytest.raises(UsageError, match="is no Parquet"):
        read_problems(str(tmp_path / "p.parquet"))


def test_offline_a_set_of_the_hub_opens_no_socket_and_says_how_to_get_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    datasets = pytest.importorskip("datasets")
    constants = pytest.importorskip("huggingface_hub.constants")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path)
    before = datasets.config.HF_HUB_OFFLINE, constants.HF_HUB_OFFLINE
    with EgressTrap() as trap, pytest.raises(ProblemsError, match=r"hf download.* HuggingFaceH4/aime_2024"):
        read_problems("aime24", offline=True)
    assert trap.sockets == 0
    assert before == (datasets.config.HF_HUB_OFFLINE, constants.HF_HUB_OFFLINE)


@pytest.mark.parametrize(
    ("opening", "text", "fitted"),
    [
        ("<think>\n", "<think>\na\n</think>b", "a\n</think>b"),
        ("<think>\n", "a\n</think>b", "a\n</think>b"),
        ("<think>", "<think>\na\n</think>b", "\na\n</think>b"),
        ("", "<think>\na\n</think>b", "<think>\na\n</think>b"),
        ("", "a\n</think>b", "<think>\na\n</think>b"),
        ("", "a, so b", "a, so b"),
    ],
)
def test_a_trace_is_fitted_to_what_the_template_wrote(opening: str, text: str, fitted: str) -> None:
    assert fit_opening(text, opening) == fitted
    assert fit_opening(fitted, opening) == fitted
