"""The history: conversations, turns and every event of their answers, in one SQLite file."""

from sr_edge.store.context import messages, title_of
from sr_edge.store.opening import history_path
from sr_edge.store.recorder import Recorder
from sr_edge.store.records import (
    STATUS_OF,
    Conversation,
    HistoryError,
    Hit,
    RemoteStats,
    Stats,
    Status,
    Turn,
)
from sr_edge.store.store import Store

__all__ = [
    "STATUS_OF",
    "Conversation",
    "HistoryError",
    "Hit",
    "Recorder",
    "RemoteStats",
    "Stats",
    "Status",
    "Store",
    "Turn",
    "history_path",
    "messages",
    "title_of",
]
