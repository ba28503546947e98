"""How the tests of the screen run: each `async def test_…` in a loop of its own."""

import asyncio
import inspect

import pytest


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    if not inspect.iscoroutinefunction(pyfuncitem.obj):
        return None
    given = {name: pyfuncitem.funcargs[name] for name in pyfuncitem._fixtureinfo.argnames}
    asyncio.run(pyfuncitem.obj(**given))
    return True


@pytest.fixture(autouse=True)
def plain_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the machine that runs the tests says of its terminal is not to be seen in them."""
    for variable in ("NO_COLOR", "COLORTERM", "TEXTUAL_THEME", "VISUAL", "EDITOR"):
        monkeypatch.delenv(variable, raising=False)


def pytest_configure(config: pytest.Config) -> None:
    """The report on pictures that differ goes where nobody commits it, and may be written in an old way."""
    if config.getoption("snapshot_report", None) == "snapshot_report.html":
        config.option.snapshot_report = ".pytest_cache/snapshot_report.html"
    config.addinivalue_line(
        "filterwarnings", r"ignore:datetime\.datetime\.utcnow:DeprecationWarning:pytest_textual_snapshot"
    )
