"""How a chat begins: which history it has, and what is left of one that keeps nothing."""

import os
from pathlib import Path

import pytest

from sr_edge.config import load_config
from sr_edge.engine.messages import Choices
from sr_edge.errors import UsageError
from sr_edge.store import HistoryError, Store, history_path
from sr_edge.tui import beginning
from sr_edge.tui.beginning import Beginning


@pytest.fixture
def begin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Makes beginnings whose forgotten folders are under `tmp_path`."""
    monkeypatch.setattr(beginning, "_place", lambda: tmp_path)

    def make(**options: object) -> Beginning:
        flags = {"log.enabled": options.pop("keeps", True)}
        environ = {**os.environ, "SR_EDGE_HOME": str(tmp_path / "home")}
        config = load_config(environ=environ, flags=flags)
        return Beginning(config, Choices(flags=flags), environ=environ, **options)

    return make


def folders(tmp_path: Path) -> list[Path]:
    return [path for path in tmp_path.iterdir() if path.name.startswith("sr-edge-chat-")]


def test_what_is_not_to_be_kept_is_in_no_history_and_gone_at_the_end(begin, tmp_path: Path) -> None:
    one = begin(keeps=False)
    with beginning.history(one) as (store, problems):
        store.say(store.new_conversation("secret").id, None, "secret")
        assert problems == []
        (folder,) = folders(tmp_path)
        assert folder.stat().st_mode & 0o777 == 0o700
    assert folders(tmp_path) == []
    assert not history_path(one.environ).exists()


def test_what_a_killed_chat_left_is_removed_by_the_next_one_a_living_one_is_not(
    begin, tmp_path: Path
) -> None:
    left = tmp_path / "sr-edge-chat-dead"
    left.mkdir(mode=0o700)
    (left / "history.db").write_text("secret")
    with beginning.history(begin(keeps=False)):
        (living,) = folders(tmp_path)
        with beginning.history(begin(keeps=False)):
            assert living.exists()
            assert not left.exists()


def test_a_conversation_of_a_history_that_cannot_be_written_is_not_replaced_by_an_empty_one(
    begin, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = begin()
    with beginning.history(one) as (store, _):
        id = store.new_conversation("kept").id
        store.say(id, None, "kept")
    monkeypatch.setattr(
        Store, "is_read_only", property(lambda store: True, lambda store, value: None), raising=False
    )
    with pytest.raises(HistoryError, match="logs show"), beginning.history(begin(conversation=id)):
        pass


def test_a_chat_that_keeps_nothing_goes_on_with_nothing(begin) -> None:
    with pytest.raises(UsageError, match="no-log"), beginning.history(begin(keeps=False, goes_on=True)):
        pass
