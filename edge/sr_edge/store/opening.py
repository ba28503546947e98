"""Opens the history file, in whatever state it is: missing, old, newer, damaged, foreign, read-only, locked.

What is damaged is set aside under another name, never deleted; what is old is backed up before it is changed.
"""

from __future__ import annotations

import os
import secrets
import sqlite3
import stat
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from pathlib import Path

from sr_edge.errors import UsageError
from sr_edge.files import HOME_VARIABLE, locked, make_private_dir, state_dir
from sr_edge.store.records import HistoryError
from sr_edge.store.schema import APPLICATION_ID, MIGRATIONS

BUSY_SECONDS = 5.0
"""How long to wait for another process. Each writes for milliseconds."""

_FIRST_SAFE_WAL = (3, 51, 3)  # before it, two connections at once could damage a database in this mode
_BESIDE = ("-journal", "-wal", "-shm")  # what SQLite keeps beside a database; it may hold a part of it

_PASSING = {
    sqlite3.SQLITE_BUSY,
    sqlite3.SQLITE_LOCKED,
    sqlite3.SQLITE_FULL,
    sqlite3.SQLITE_IOERR,
    sqlite3.SQLITE_NOMEM,
    sqlite3.SQLITE_CANTOPEN,
    sqlite3.SQLITE_PROTOCOL,
    sqlite3.SQLITE_READONLY,
    sqlite3.SQLITE_INTERRUPT,
}
_DAMAGED = {sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_CORRUPT}


def history_path(environ: Mapping[str, str] = os.environ) -> Path:
    return state_dir(environ) / "history.db"


def connect(path: Path, *, mode: str = "rw", is_ours: bool = True) -> sqlite3.Connection:
    """One that its thread keeps to itself.

    Args:
        mode: `rw`, `ro`, or `immutable` for a file beside which nothing can be written.
        is_ours: whether the file is known to be; else opening it changes nothing.
    """
    how = "mode=ro&immutable=1" if mode == "immutable" else f"mode={mode}"
    uri = f"{path.absolute().as_uri()}?{how}"
    connection = sqlite3.connect(uri, uri=True, timeout=BUSY_SECONDS, isolation_level=None)
    try:
        connection.execute("PRAGMA foreign_keys = ON")
        connection.execute("PRAGMA trusted_schema = OFF")
        if mode == "rw":
            connection.execute("PRAGMA secure_delete = ON")
            connection.execute("PRAGMA synchronous = FULL")
            if is_ours:
                _set_journal(connection)
    except BaseException:
        connection.close()
        raise
    return connection


def _set_journal(connection: sqlite3.Connection) -> None:
    wanted = journal_mode(sqlite3.sqlite_version_info)
    if connection.execute("PRAGMA journal_mode").fetchone()[0] != wanted:
        with suppress(sqlite3.OperationalError):  # others have it open: it stays as it is until then
            connection.execute(f"PRAGMA journal_mode = {wanted}")


def journal_mode(version: tuple[int, ...]) -> str:
    """Args:
    version: of SQLite.
    """
    return "wal" if version >= _FIRST_SAFE_WAL else "truncate"


@contextmanager
def transaction(connection: sqlite3.Connection) -> Iterator[None]:
    """All or nothing, on disk when left."""
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise


# --- what went wrong ---------------------------------------------------------------------------------


def is_passing(error: Exception) -> bool:
    """Whether it may go by itself: a full disk, another process that is writing."""
    if isinstance(error, HistoryError):
        return error.is_passing
    return isinstance(error, OSError | MemoryError) or _code(error) in _PASSING


def is_damage(error: sqlite3.Error) -> bool:
    return _code(error) in _DAMAGED


def reason(error: Exception) -> str:
    """A few words for the user."""
    if isinstance(error, OSError):
        return error.strerror or str(error)
    match _code(error):
        case sqlite3.SQLITE_BUSY | sqlite3.SQLITE_LOCKED:
            return "another program keeps it locked"
        case sqlite3.SQLITE_FULL:
            return "the disk is full"
        case sqlite3.SQLITE_IOERR:
            return "the disk is full, or fails"
        case sqlite3.SQLITE_READONLY | sqlite3.SQLITE_CANTOPEN:
            return "it or its folder may not be written"
    return str(error) or type(error).__name__


def _code(error: Exception) -> int | None:
    code = getattr(error, "sqlite_errorcode", None)
    return code & 0xFF if isinstance(code, int) else None


def explained(path: Path, error: Exception) -> HistoryError:
    """As the user should read it."""
    if isinstance(error, HistoryError):
        return error
    if isinstance(error, sqlite3.Error) and is_damage(error):
        return HistoryError(
            f"{path} is damaged ({error}). Move it away and a new one begins; `sqlite3 FILE .recover` reads "
            "what can still be read"
        )
    return HistoryError(f"the history {path} cannot be used: {reason(error)}", is_passing=is_passing(error))


# --- opening -----------------------------------------------------------------------------------------


def opened(
    path: Path,
    *,
    warn: Callable[[str], None],
    create: bool = True,
    migrations: Sequence[str] = MIGRATIONS,
) -> tuple[sqlite3.Connection, bool]:
    """A connection, and whether it may only be read. Without `create` what is not there is empty.

    Raises:
        HistoryError: it cannot be opened; nothing was changed.
    """
    try:
        if not os.path.lexists(path):
            if not create:
                return _empty(migrations), True
            with _locked(path):
                _make(path, migrations)
        try:
            connection, is_read_only = _probed(path, warn, migrations)
        except sqlite3.DatabaseError as error:
            if not is_damage(error):
                raise
            with _locked(path):
                _replace_damaged(path, warn, migrations)
            connection, is_read_only = _probed(path, warn, migrations)
        if is_read_only and create:
            warn(f"the history {path} may only be read: what is written now is not kept")
        return connection, is_read_only
    except (OSError, sqlite3.Error) as error:
        raise explained(path, error) from None


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    try:
        with locked(path):
            yield
    except UsageError as error:
        raise HistoryError(f"no history: {error}") from None


def _empty(migrations: Sequence[str]) -> sqlite3.Connection:
    connection = sqlite3.connect(":memory:", isolation_level=None)
    for script in migrations:
        connection.executescript(script)
    connection.execute("PRAGMA query_only = ON")
    return connection


def _make(path: Path, migrations: Sequence[str]) -> None:
    """Under another name first: what has its name is whole."""
    if os.path.lexists(path):
        return  # another process was faster
    make_private_dir(path.parent)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        os.close(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
        with closing(connect(temporary)) as connection:
            _upgrade(connection, 0, migrations)
        os.replace(temporary, path)
    finally:
        for name in ("", *_BESIDE):
            with suppress(OSError):
                os.unlink(f"{temporary}{name}")


def _upgrade(connection: sqlite3.Connection, version: int, migrations: Sequence[str]) -> None:
    with transaction(connection):
        for script in migrations[version:]:
            for statement in _statements(script):
                connection.execute(statement)
        connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        connection.execute(f"PRAGMA user_version = {len(migrations)}")


def _statements(script: str) -> Iterator[str]:
    """`executescript` would commit by itself."""
    statement = ""
    for line in script.splitlines(keepends=True):
        statement += line
        if sqlite3.complete_statement(statement):
            yield statement
            statement = ""


def _probed(
    path: Path, warn: Callable[[str], None], migrations: Sequence[str]
) -> tuple[sqlite3.Connection, bool]:
    if not stat.S_ISREG(os.stat(path).st_mode):
        raise HistoryError(f"no history: {path} is not a file")
    if os.stat(path).st_size == 0:  # ours never is: it has lost what was in it
        raise _damaged("the file is empty")
    is_writable = os.access(path, os.W_OK) and os.access(path.parent, os.W_OK)
    connection = _readable(path, "rw" if is_writable else "ro")
    try:
        version = connection.execute("PRAGMA user_version").fetchone()[0]
        application = connection.execute("PRAGMA application_id").fetchone()[0]
        if application != APPLICATION_ID:
            raise HistoryError(
                f"no history: {path} is a database of another program. Move it away, or let "
                f"{HOME_VARIABLE}=FOLDER put our files elsewhere"
            )
        if version > len(migrations):
            raise HistoryError(
                f"no history: {path} has format {version}, and this sr-edge reads up to {len(migrations)}: "
                f"upgrade sr-edge; until then answers are not kept"
            )
        if is_writable:
            _set_journal(connection)
        if version < len(migrations):
            if not is_writable:
                raise HistoryError(
                    f"no history: {path} has format {version} and needs {len(migrations)}, and may not be "
                    "written: make it writable once"
                )
            with _locked(path):
                _migrate(connection, path, migrations, warn)
        for table in ("conversation", "turn", "part", "span"):  # damage shows where it is read
            connection.execute(f"SELECT * FROM {table} LIMIT 1").fetchone()
    except BaseException:
        connection.close()
        raise
    return connection, not is_writable


def _readable(path: Path, mode: str) -> sqlite3.Connection:
    connection = connect(path, mode=mode, is_ours=False)
    try:
        connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
    except sqlite3.OperationalError:
        connection.close()
        if mode != "ro":
            raise
        connection = connect(path, mode="immutable")  # it would need a file beside it even to be read
    except BaseException:
        connection.close()
        raise
    return connection


def _damaged(message: str) -> sqlite3.DatabaseError:
    error = sqlite3.DatabaseError(message)
    error.sqlite_errorcode = sqlite3.SQLITE_CORRUPT
    return error


def _migrate(
    connection: sqlite3.Connection, path: Path, migrations: Sequence[str], warn: Callable[[str], None]
) -> None:
    """One copy of what was is kept beside it."""
    version = connection.execute("PRAGMA user_version").fetchone()[0]
    if version >= len(migrations):
        return  # another process was faster
    copy = _free(path, f"format-{version}")
    back_up(connection, copy)
    _upgrade(connection, version, migrations)
    warn(f"the history was brought to format {len(migrations)}; as it was, it is kept as {copy}")


def back_up(connection: sqlite3.Connection, to: Path) -> None:
    """A copy, whole when it has its name. Raises: OSError, sqlite3.Error."""
    temporary = to.with_name(f".{to.name}.{secrets.token_hex(4)}")
    try:
        os.close(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
        with closing(sqlite3.connect(temporary)) as copy:
            connection.backup(copy)
            copy.execute("PRAGMA journal_mode = DELETE")  # one file, and nothing beside it
        descriptor = os.open(temporary, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        os.replace(temporary, to)
    finally:
        for name in ("", *_BESIDE):
            with suppress(OSError):
                os.unlink(f"{temporary}{name}")


def _replace_damaged(path: Path, warn: Callable[[str], None], migrations: Sequence[str]) -> None:
    try:
        connection, _ = _probed(path, lambda line: None, migrations)
    except sqlite3.DatabaseError as error:
        if not is_damage(error):
            raise
    except FileNotFoundError:
        pass
    else:
        connection.close()
        return  # another process was faster
    aside = _free(path, "corrupt")
    for name in (*_BESIDE, ""):
        with suppress(FileNotFoundError):
            os.replace(f"{path}{name}", f"{aside}{name}")
    _make(path, migrations)
    warn(f"the history was damaged and begins anew; what was there is kept as {aside}")


def _free(path: Path, word: str) -> Path:
    n = 1
    while os.path.lexists(free := path.with_name(f"{path.name}.{word}-{n}")):
        n += 1
    return free
