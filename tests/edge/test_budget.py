"""What a span may cost: never more than every limit has room for, counted together by all processes."""

import json
import multiprocessing
import os
import stat
import threading
from datetime import date, timedelta
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sr_edge.budget import (
    KEEP_DAYS,
    MAX_TOKENS,
    MIN_GRANT,
    WARN_AT,
    Account,
    Budget,
    Ledger,
    Meter,
    Price,
    Spent,
    dollars,
)
from sr_edge.roles import Outcome, SpanRequest

DAY = date(2026, 3, 14)
PRICE = Price(input=1.0, output=4.0)


def asked(
    prompt: int = 1000, max_tokens: int = 512, *, span: int = 1, local: int = 400, remote: int = 0
) -> SpanRequest:
    return SpanRequest(span, prompt, local, remote, max_tokens)


def allowed(
    budget: Budget, request: SpanRequest | None = None, *, price: Price | None = PRICE, **spent: Spent
):
    zero = {"answer": Spent(), "today": Spent()}
    return Meter(budget, price).allowance(request or asked(), **{**zero, **spent})


def ledger(path: Path, day: date = DAY) -> Ledger:
    return Ledger(path / "spent.json", today=lambda: day)


# --- the meter ---------------------------------------------------------------------------------------


def test_a_price_is_per_million_tokens() -> None:
    assert PRICE.cost(1_000_000, 500_000) == pytest.approx(3.0)


def test_without_limits_a_span_has_what_it_asks_for() -> None:
    assert allowed(Budget()) == 512


@pytest.mark.parametrize(
    ("budget", "tokens"),
    [
        (Budget(usd_per_answer=0.002), 250),  # a tenth of a cent is the prompt
        (Budget(usd_per_day=0.002), 250),
        (Budget(tokens_per_answer=1200), 200),
        (Budget(tokens_per_day=1100), 100),
        (Budget(share=0.2), 100),
        (Budget(usd_per_answer=0.002, tokens_per_day=1100, share=0.2), 100),
    ],
)
def test_a_span_gets_what_the_narrowest_limit_has_room_for(budget: Budget, tokens: int) -> None:
    assert allowed(budget) == pytest.approx(tokens, abs=1)


@pytest.mark.parametrize(
    ("budget", "line"),
    [
        (
            Budget(usd_per_answer=0.025),
            "the answer's budget of $0.025 is used up; allow more: "
            "`sr-edge config set budget.usd_per_answer 0.05`",
        ),
        (
            Budget(usd_per_day=0.0258),
            "the day's budget is too small for another span: $0.00080 left of $0.026; allow more: "
            "`sr-edge config set budget.usd_per_day 0.06`",
        ),
        (
            Budget(tokens_per_day=6010),
            "the day's budget is too small for another span: 1010 tokens left of 6010 tokens; allow more: "
            "`sr-edge config set budget.tokens_per_day 20000`",
        ),
        (
            Budget(share=0.02),
            "the remote has had its share of the answer, 2 %; allow more: "
            "`sr-edge config set budget.share 0.04`",
        ),
    ],
)
def test_a_refusal_is_one_line_with_the_way_out(budget: Budget, line: str) -> None:
    assert allowed(budget, answer=Spent(0.025, 5000), today=Spent(0.025, 5000)) == line


def test_dollars_do_not_count_without_a_price_and_tokens_do() -> None:
    assert allowed(Budget(usd_per_answer=0), price=None) == 512
    assert isinstance(allowed(Budget(tokens_per_answer=500), price=None), str)
    assert allowed(Budget(usd_per_answer=0), price=Price(0, 0)) == 512


def test_a_span_too_short_to_say_anything_is_refused() -> None:
    assert allowed(Budget(tokens_per_answer=1000 + MIN_GRANT)) == MIN_GRANT
    assert isinstance(allowed(Budget(tokens_per_answer=999 + MIN_GRANT)), str)
    assert allowed(Budget(tokens_per_answer=1004), asked(max_tokens=4)) == 4


AMOUNTS = st.floats(0, 10, allow_nan=False)
COUNTS = st.integers(0, 100_000)
BUDGETS = st.builds(
    Budget,
    usd_per_answer=st.none() | AMOUNTS,
    usd_per_day=st.none() | AMOUNTS,
    tokens_per_answer=st.none() | COUNTS,
    tokens_per_day=st.none() | COUNTS,
    share=st.none() | st.floats(0, 1),
)
PRICES = st.builds(Price, input=st.floats(0, 100), output=st.floats(0, 100))
SPENT = st.builds(Spent, usd=AMOUNTS, tokens=COUNTS)
REQUESTS = st.builds(
    SpanRequest,
    span=st.integers(1, 9),
    sent_tokens=st.integers(0, 20_000),
    local_tokens=COUNTS,
    remote_tokens=COUNTS,
    max_tokens=st.integers(1, 2000),
)


def as_count(allowance: int | str) -> int:
    return 0 if isinstance(allowance, str) else allowance


@given(
    BUDGETS,
    PRICES,
    st.lists(st.tuples(st.integers(1, 5000), st.integers(1, 600), st.integers(1, 99)), max_size=9),
)
def test_no_limit_is_ever_passed(budget: Budget, price: Price, spans: list[tuple[int, int, int]]) -> None:
    meter = Meter(budget, price)
    total, local, remote = Spent(), 0, 0
    for n, (prompt, wanted, written) in enumerate(spans, 1):
        local += written
        request = SpanRequest(n, prompt, local, remote, wanted)
        granted = as_count(meter.allowance(request, answer=total, today=total))
        assert granted <= wanted
        if granted:
            assert granted >= min(MIN_GRANT, wanted)
            total += Spent(price.cost(prompt, granted), prompt + granted)
            remote += granted
            assert budget.share is None or remote <= budget.share * (local + remote)
    if remote:
        assert total.usd <= min(x for x in (budget.usd_per_answer, budget.usd_per_day, 1e9) if x is not None)
        assert total.tokens <= min(
            x for x in (budget.tokens_per_answer, budget.tokens_per_day, 10**9) if x is not None
        )


@given(BUDGETS, PRICES, REQUESTS, SPENT, SPENT, SPENT)
def test_who_has_spent_more_gets_no_more(budget, price, request, answer, today, more) -> None:
    meter = Meter(budget, price)
    before = as_count(meter.allowance(request, answer=answer, today=today))
    assert as_count(meter.allowance(request, answer=answer + more, today=today)) <= before
    assert as_count(meter.allowance(request, answer=answer, today=today + more)) <= before


@given(BUDGETS, PRICES, REQUESTS, SPENT, st.integers(0, 5000))
def test_a_longer_prompt_gets_no_more(budget, price, request, spent, more) -> None:
    longer = SpanRequest(
        request.span,
        request.sent_tokens + more,
        request.local_tokens,
        request.remote_tokens,
        request.max_tokens,
    )
    meter = Meter(budget, price)
    assert as_count(meter.allowance(longer, answer=spent, today=spent)) <= as_count(
        meter.allowance(request, answer=spent, today=spent)
    )


@given(BUDGETS, PRICES, REQUESTS, SPENT)
def test_every_refusal_is_one_line(budget, price, request, spent) -> None:
    allowance = Meter(budget, price).allowance(request, answer=spent, today=spent)
    assert allowance if isinstance(allowance, int) else "sr-edge config set budget." in allowance
    assert "\n" not in str(allowance)


@given(BUDGETS, PRICES, REQUESTS, SPENT)
def test_what_a_refusal_advises_is_enough(budget, price, request, spent) -> None:
    for _ in range(5):  # each limit once
        allowance = Meter(budget, price).allowance(request, answer=spent, today=spent)
        if isinstance(allowance, int) or "budget.share" in allowance:
            return
        key, value = allowance.split("budget.")[-1].rstrip("`").split()
        budget = Budget(
            **{
                **{name: getattr(budget, name) for name in Budget.__slots__},
                key: float(value) if "usd" in key else int(value),
            }
        )
    pytest.fail(str(allowance))


def test_the_user_is_warned_once_a_limit_is_nearly_used_up() -> None:
    meter = Meter(Budget(usd_per_day=1.0, tokens_per_answer=1000), PRICE)
    assert meter.warnings(answer=Spent(0.1, 799), today=Spent(0.79, 799)) == {}
    assert meter.warnings(answer=Spent(0.1, 850), today=Spent(WARN_AT, 850)) == {
        "usd_per_day": "80 % of the day's budget of $1.00 is used up",
        "tokens_per_answer": "85 % of the answer's budget of 1000 tokens is used up",
    }


@pytest.mark.parametrize(
    ("amount", "shown"),
    [
        (0, "$0.00"),
        (12.3, "$12.30"),
        (0.0012, "$0.0012"),
        (1e-12, "$0.00000000"),
        (float("nan"), "$0.00"),
    ],
)
def test_dollars_have_two_digits_that_mean_something(amount: float, shown: str) -> None:
    assert dollars(amount) == shown


# --- one conversation --------------------------------------------------------------------------------


def test_an_account_counts_what_the_remote_counts(tmp_path: Path) -> None:
    account = Account(Meter(Budget(), PRICE), ledger(tmp_path), "fast")
    outcome = Outcome("stop", prompt_tokens=1200, completion_tokens=100)
    assert account.spend(asked(), outcome, 80) == pytest.approx(0.0016)
    assert ledger(tmp_path).spent("fast") == Spent(pytest.approx(0.0016), 1300)


def test_an_account_estimates_what_the_remote_does_not_say(tmp_path: Path) -> None:
    account = Account(Meter(Budget(), None), ledger(tmp_path), "fast")
    assert account.spend(asked(), Outcome("stop"), 80) is None
    assert ledger(tmp_path).spent() == Spent(0, 1080)
    account.spend(asked(), Outcome("error", "refused"), 0)  # nobody charges for that
    assert ledger(tmp_path).spent() == Spent(0, 1080)
    account.spend(asked(), Outcome("stalled", "silent"), 0)  # it has read the prompt
    assert ledger(tmp_path).spent() == Spent(0, 2080)


@pytest.mark.parametrize("absurd", [10**400, 10**10, -1, float("nan"), float("inf")])
def test_a_count_that_cannot_be_true_is_not_believed(absurd: int, tmp_path: Path) -> None:
    account = Account(Meter(Budget(usd_per_day=1), PRICE), ledger(tmp_path), "fast")
    outcome = Outcome("stop", prompt_tokens=absurd, completion_tokens=absurd)
    assert account.spend(asked(), outcome, 80) == pytest.approx(0.00132)
    assert ledger(tmp_path).spent() == Spent(pytest.approx(0.00132), 1080)
    outcome = Outcome("stop", prompt_tokens=absurd, completion_tokens=20)
    account.spend(asked(), outcome, 80)
    assert ledger(tmp_path).spent().tokens == 1080 + 1020
    assert isinstance(account.allowance(asked(span=2)), int)


ANY_FLOAT = st.floats() | st.integers(-(10**400), 10**400) | st.sampled_from([10**400, -(10**400), 1e308])
ANY_COUNT = st.integers(-(10**400), 10**400) | st.sampled_from([10**400, -(10**400), 10**5000])


@settings(max_examples=50)
@given(data=st.data())
def test_no_number_raises(data: st.DataObject, tmp_path_factory: pytest.TempPathFactory) -> None:
    def number() -> float:
        return data.draw(ANY_FLOAT)

    def count() -> int:
        return data.draw(ANY_COUNT)

    path = tmp_path_factory.getbasetemp() / "absurd"
    (path / "spent.json").unlink(missing_ok=True)
    price = Price(number(), number())
    assert 0 <= price.cost(count(), count()) < float("inf")
    budget = Budget(number(), number(), count(), count(), number())
    meter = Meter(budget, price)
    request = SpanRequest(data.draw(st.integers(1, 3)), count(), count(), count(), count())
    spent = Spent(number(), count()) + Spent(number(), count())
    assert "\n" not in str(meter.allowance(request, answer=spent, today=spent))
    assert "\n" not in "".join(meter.warnings(answer=spent, today=spent).values())
    assert dollars(number()).startswith("$")
    book = ledger(path)
    book.add("fast", number(), count())
    account = Account(meter, book, "fast")
    account.allowance(request)
    account.spend(request, Outcome("stop", prompt_tokens=count(), completion_tokens=count()), count())
    assert book.problem is None
    assert ledger(path).spent() == book.spent()


def test_the_limit_of_an_answer_begins_anew_and_that_of_the_day_does_not(tmp_path: Path) -> None:
    account = Account(
        Meter(Budget(tokens_per_answer=2000, tokens_per_day=3000), None), ledger(tmp_path), "fast"
    )
    assert account.allowance(asked()) == 512
    account.spend(asked(), Outcome("stop"), 500)
    assert "the answer's budget" in str(account.allowance(asked(span=2)))
    assert account.allowance(asked(span=1)) == 500
    account.spend(asked(), Outcome("stop"), 500)
    account.begin_answer()  # its first span was refused by somebody else
    assert "the day's budget" in str(account.allowance(asked(span=2)))
    other = Account(Meter(Budget(tokens_per_day=3000), None), ledger(tmp_path), "slow")
    assert "the day's budget" in str(other.allowance(asked()))


def test_an_account_warns_once_of_each_limit(tmp_path: Path) -> None:
    lines: list[str] = []
    account = Account(Meter(Budget(tokens_per_day=3000), None), ledger(tmp_path), "fast", warn=lines.append)
    for _ in range(3):
        account.spend(asked(), Outcome("stop"), 250)
    assert lines == ["83 % of the day's budget of 3000 tokens is used up"]


# --- the ledger --------------------------------------------------------------------------------------


def test_a_day_begins_with_nothing(tmp_path: Path) -> None:
    ledger(tmp_path).add("fast", 0.5, 100)
    ledger(tmp_path).add("slow", 0.25, 7)
    assert ledger(tmp_path).spent("fast") == Spent(0.5, 100)
    assert ledger(tmp_path).spent() == Spent(0.75, 107)
    assert ledger(tmp_path, DAY + timedelta(days=1)).spent() == Spent()


def test_the_file_is_private(tmp_path: Path) -> None:
    ledger(tmp_path / "new").add("fast", 0.5, 100)
    assert stat.S_IMODE((tmp_path / "new" / "spent.json").stat().st_mode) == 0o600
    assert stat.S_IMODE((tmp_path / "new").stat().st_mode) == 0o700


def test_a_clock_that_goes_back_a_day_does_not_open_the_day_again(tmp_path: Path) -> None:
    ledger(tmp_path).add("fast", 1.0, 10)
    back = ledger(tmp_path, DAY - timedelta(days=1))
    assert back.spent() == Spent(1.0, 10)
    back.add("fast", 1.0, 10)
    assert ledger(tmp_path).spent() == Spent(2.0, 20)


def test_a_clock_that_was_years_ahead_blocks_nothing_and_clears_nothing(tmp_path: Path) -> None:
    ledger(tmp_path).add("fast", 1.0, 10)
    ledger(tmp_path, date(2099, 1, 1)).add("fast", 5.0, 50)
    assert ledger(tmp_path).spent() == Spent(1.0, 10)
    ledger(tmp_path).add("fast", 1.0, 10)
    assert ledger(tmp_path).spent() == Spent(2.0, 20)


def test_old_days_are_dropped_and_today_never(tmp_path: Path) -> None:
    for n in range(40):
        ledger(tmp_path, DAY + timedelta(days=n)).add("fast", 1.0, 10)
    days = json.loads((tmp_path / "spent.json").read_text())["days"]
    assert len(days) == KEEP_DAYS
    assert max(days) == (DAY + timedelta(days=39)).isoformat()
    past = ledger(tmp_path, date(1970, 1, 1))
    past.add("fast", 2.0, 20)
    assert past.spent() == Spent(2.0, 20)


def _add(path: Path, process: int) -> None:
    book = ledger(path)
    for _ in range(200):
        book.add(f"remote {process % 2}", 0.1, 3)
    while book.problem:
        book.add(f"remote {process % 2}", 0, 0)


def test_several_processes_lose_nothing(tmp_path: Path) -> None:
    processes = [
        multiprocessing.get_context("spawn").Process(target=_add, args=(tmp_path, n)) for n in range(4)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
    assert [process.exitcode for process in processes] == [0, 0, 0, 0]
    assert ledger(tmp_path).spent() == Spent(80.0, 2400)
    assert ledger(tmp_path).spent("remote 1") == Spent(40.0, 1200)


def test_what_one_thread_adds_another_reads_once(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "spent.json")
    begun = done = 0

    def add() -> None:
        nonlocal begun, done
        for _ in range(100):
            begun += 1
            ledger.add("r", 0.0, 1)
            done += 1

    adding = threading.Thread(target=add)
    adding.start()
    while adding.is_alive():
        least, found, most = done, ledger.spent().tokens, begun
        assert least <= found <= most
    adding.join()
    assert ledger.spent().tokens == 100


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"\xff\xfe",
        b"null",
        b"[]",
        b"[" * 100_000,
        b'{"version": 1}',
        b'{"version": 1, "days": {"yesterday": {}}}',
        b'{"version": 1, "days": {"2026-03-14": {"fast": {"nanodollars": -1, "tokens": 0}}}}',
        b'{"version": 1, "days": {"2026-03-14": {"fast": {"nanodollars": 1.5, "tokens": true}}}}',
        b'{"version": 1, "days": {"2026-03-14": {"fast": {"nanodollars": 1, "tokens": 1%s}}}}' % (b"0" * 400),
        b'{"version": 1, "days": {"2026-03-14": {"fast": {"nanodollars": 1%s, "tokens": 1}}}}' % (b"0" * 400),
        b'{"version": 1, "days": {"2026-03-14": {"fast": {"nanodollars": 1, "tokens": 1%s}}}}'
        % (b"0" * 9999),
        b'{"version": 1, "days": {"2026-03-14": {"fast": {"nanodollars": 1e999, "tokens": 1}}}}',
    ],
    ids=[
        "empty",
        "cut",
        "no text",
        "null",
        "list",
        "deep",
        "no days",
        "no date",
        "negative",
        "no integer",
        "absurd tokens",
        "absurd dollars",
        "more digits than are read",
        "infinite",
    ],
)
def test_a_damaged_file_is_set_aside_and_told(tmp_path: Path, content: bytes) -> None:
    for n in (1, 2):
        (tmp_path / "spent.json").write_bytes(content)
        book = ledger(tmp_path)
        assert book.spent() == Spent()
        book.add("fast", 0.5, 100)
        assert book.problem is not None
        assert f"spent.json.corrupt-{n}" in book.problem
        assert (tmp_path / f"spent.json.corrupt-{n}").read_bytes() == content
        assert book.spent() == ledger(tmp_path).spent() == Spent(0.5, 100)
        book.add("fast", 0.5, 100)
        assert book.problem is None


def test_what_is_written_is_never_taken_for_damaged(tmp_path: Path) -> None:
    for _ in range(3):
        ledger(tmp_path).add("fast", 1e300, 10**300)
    assert ledger(tmp_path).spent().tokens >= MAX_TOKENS
    assert [*tmp_path.glob("*corrupt*")] == []


def test_a_file_of_a_newer_version_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "spent.json").write_text('{"version": 2, "months": []}')
    book = ledger(tmp_path)
    book.add("fast", 0.5, 100)
    assert "newer sr-edge" in (book.problem or "")
    assert book.spent() == Spent(0.5, 100)
    assert (tmp_path / "spent.json").read_text() == '{"version": 2, "months": []}'


def test_what_cannot_be_saved_is_counted_in_memory_and_saved_later(tmp_path: Path) -> None:
    (tmp_path / "in the way").write_text("a file where a folder should be")
    book = Ledger(tmp_path / "in the way" / "spent.json", today=lambda: DAY)
    book.add("fast", 0.5, 100)
    book.add("fast", 0.25, 50)
    assert "in the way" in (book.problem or "")
    assert book.spent() == Spent(0.75, 150)
    (tmp_path / "in the way").unlink()
    book.add("slow", 0.25, 1)
    assert book.problem is None
    assert Ledger(tmp_path / "in the way" / "spent.json", today=lambda: DAY).spent() == Spent(1.0, 151)


@pytest.mark.parametrize("failing", ["open", "replace", "fsync"])
def test_a_full_disk_ends_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: str) -> None:
    ledger(tmp_path).add("fast", 0.5, 100)

    def full(*args: object, **kwargs: object) -> None:
        raise OSError(28, "No space left on device")

    book = ledger(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(os, failing, full)
        book.add("fast", 0.5, 100)
    assert "No space left" in (book.problem or "")
    assert book.spent() == Spent(1.0, 200)
    assert ledger(tmp_path).spent() == Spent(0.5, 100)
    book.add("fast", 0, 0)
    assert ledger(tmp_path).spent() == Spent(1.0, 200)


def test_a_file_that_cannot_be_read_is_not_written_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger(tmp_path).add("fast", 0.5, 100)
    content = (tmp_path / "spent.json").read_bytes()

    def denied(*args: object) -> str:
        raise PermissionError(13, "Permission denied")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "read_text", denied)
        book = ledger(tmp_path)
        book.add("fast", 0.25, 10)
        assert "Permission denied" in (book.problem or "")
        assert book.spent() == Spent(0.25, 10)
    assert (tmp_path / "spent.json").read_bytes() == content
    assert book.spent() == Spent(0.75, 110)
