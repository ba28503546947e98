"""What was found out about endpoints, from run to run."""

import json
import stat

import pytest

from sr_edge.remote.dialects import Capabilities, Quirks
from sr_edge.remote.known import forget, load, save

URL = "http://127.0.0.1:8000/v1"
FOUND = Capabilities(
    "vllm-think", "vllm-plain", Quirks(frozenset({"seed"})), findings=(("completions", "refused"),)
)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "cache" / "endpoints.json"


def test_what_is_saved_is_there_in_the_next_run_for_that_url_and_model(path):
    save(path, URL, "big", FOUND)
    save(path, URL, None, Capabilities(None, "instruct"))
    assert load(path, URL, "big") == FOUND
    assert load(path, URL, None) == Capabilities(None, "instruct")
    assert load(path, URL, "other") is None
    assert load(path, "http://127.0.0.1:8001/v1", "big") is None
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_the_newest_replaces_what_was_known(path):
    save(path, URL, "big", Capabilities(None, "instruct"))
    save(path, URL, "big", FOUND)
    assert load(path, URL, "big") == FOUND


def test_what_was_known_of_an_address_is_forgotten_for_all_its_models(path):
    for model in ("big", "other", None):
        save(path, URL, model, FOUND)
    save(path, URL + "/beta", "big", FOUND)
    forget(path, URL)
    assert [load(path, URL, model) for model in ("big", "other", None)] == [None, None, None]
    assert load(path, URL + "/beta", "big") == FOUND


def test_to_forget_what_was_never_known_makes_no_file(path):
    forget(path, URL)
    assert not path.parent.exists()


@pytest.mark.parametrize(
    "content",
    [
        "", "{", "[]", "null", '"x"', "{}", '{"version": 1}', '{"version": 1, "endpoints": 3}',
        '{"version": 99, "endpoints": {}}', 10_000 * "[", "\xff",
    ],
)  # fmt: skip
def test_a_file_that_cannot_be_read_is_ignored_and_written_anew(path, content):
    path.parent.mkdir()
    path.write_text(content, encoding="latin-1")
    assert load(path, URL, "big") is None
    save(path, URL, "big", FOUND)
    assert load(path, URL, "big") == FOUND


def test_an_entry_that_cannot_be_read_is_not_known_and_harms_no_other(path):
    save(path, URL, "big", FOUND)
    content = json.loads(path.read_text())
    content["endpoints"][f"{URL}\nother"] = {"version": 99, "thought": 3}
    path.write_text(json.dumps(content))
    assert load(path, URL, "other") is None
    assert load(path, URL, "big") == FOUND


def test_where_nothing_can_be_written_nothing_is(tmp_path):
    (tmp_path / "cache").write_text("a file where a folder should be")
    save(tmp_path / "cache" / "endpoints.json", URL, "big", FOUND)
    assert load(tmp_path / "cache" / "endpoints.json", URL, "big") is None


def test_the_oldest_are_let_go_of(path, monkeypatch):
    monkeypatch.setattr("sr_edge.remote.known._MAX_ENTRIES", 3)
    for number in range(5):
        save(path, URL, str(number), FOUND)
    assert [load(path, URL, str(number)) for number in range(5)] == [None, None, FOUND, FOUND, FOUND]
