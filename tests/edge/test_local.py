"""The small model on the true llama.cpp, with a random net of two layers: nothing here is mocked.

The invariant behind most of it: whatever was fed, sampled, rewound and forked, a cursor goes on exactly as
a fresh one would that was fed the same ids.
"""

from __future__ import annotations

import ctypes
import itertools
import math
import os
import random
import subprocess
import sys
import threading
import time
import tracemalloc
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Literal

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.tiny_gguf import CHATML, CONTROL, MARKERS, USER_DEFINED, write_tiny_gguf

from sr_edge import llama, processor
from sr_edge.errors import (
    ContextFullError,
    GenerationError,
    MarkerError,
    ModelError,
    StoppedError,
    UsageError,
)
from sr_edge.local import LlamaLocal, SamplerSettings
from sr_edge.markers import OPEN
from sr_edge.passport import demo_paths
from sr_edge.roles import Message

TOLERANCE = 0.02
"""Between logits that were computed in other batches or cells; they range over some 10."""
TRAINED_TOLERANCE = 0.2
"""The same for a trained model, whose logits range further; a cache out of step differs by whole numbers."""


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_gguf(tmp_path_factory.mktemp("gguf") / "tiny.gguf")


@pytest.fixture(scope="module")
def opened(tiny: Path) -> Iterator[LlamaLocal]:
    with LlamaLocal.open(tiny, temperature=0, n_ctx=256) as model:
        yield model


@pytest.fixture(scope="module")
def fresh(tiny: Path) -> Iterator[LlamaLocal]:
    with LlamaLocal.open(tiny, temperature=0) as model:
        yield model


@pytest.fixture
def small(opened: LlamaLocal) -> LlamaLocal:
    """Greedy, empty, with a context of 256 tokens."""
    opened.rewind(0)
    return opened


class Calls(Counter[str]):
    """Of llama.cpp's functions, by name."""

    bytes_tokenized = 0


@contextmanager
def count_calls(model: LlamaLocal) -> Iterator[Calls]:
    """All calls of the bindings that the model makes from here on."""
    calls = Calls()
    vocabulary, api = model._model.vocabulary, model._llama._api

    class Counted:
        def __getattr__(self, name: str) -> object:
            value = getattr(api, name)
            if not callable(value):
                return value

            def call(*args: object) -> object:
                calls[name] += 1
                if name == "llama_tokenize":
                    assert isinstance(args[2], int)
                    calls.bytes_tokenized += args[2]
                return value(*args)

            return call

    vocabulary._api = model._llama._api = Counted()  # type: ignore[assignment]
    try:
        yield calls
    finally:
        vocabulary._api = model._llama._api = api


SPELLINGS_AND_PARTS = (*CONTROL, *MARKERS, *USER_DEFINED, "<|", "im_start", "|>", "</", "think", ">", "<")


def logits_of(model: LlamaLocal) -> np.ndarray:
    """After the model's last id; the cursor does not move."""
    return model._logits().copy()


def expect_as_fresh(model: LlamaLocal, fresh: LlamaLocal, tolerance: float = TOLERANCE) -> None:
    fresh.rewind(0)
    fresh.feed(model.ids)
    expected, found = logits_of(fresh), logits_of(model)
    assert np.abs(expected - found).max() < tolerance
    best, second = np.sort(expected)[[-1, -2]]
    if best - second > 2 * tolerance:
        assert found.argmax() == expected.argmax()


# --- opening and closing ---


def test_a_model_tells_what_it_is(small: LlamaLocal) -> None:
    assert small.name == "tiny"
    assert small.room == 256
    assert small.metadata["general.architecture"] == "qwen2"
    assert small.markers is not None
    assert small.markers.form == "token"
    assert small.markers.open_ids != small.markers.close_ids
    assert small.token_count("the hello") == len(small.tokenize("the hello"))


def test_the_context_is_what_the_model_was_trained_for(tiny: Path) -> None:
    with LlamaLocal.open(tiny) as model:
        assert model.room == 512
    with pytest.raises(UsageError, match="600 tokens: the model was trained for at most 512"):
        LlamaLocal.open(tiny, n_ctx=600)


@pytest.mark.parametrize(
    "setting",
    [
        {"temperature": -1.0},
        {"temperature": math.nan},
        {"top_p": 0.0},
        {"top_k": -1},
        {"seed": -1},
        {"threads": 0},
    ],
)
def test_impossible_settings_are_refused(setting: dict[str, float], tiny: Path) -> None:
    with pytest.raises(UsageError):
        LlamaLocal.open(tiny, **setting)  # type: ignore[arg-type]


def test_closing_twice_is_fine_and_a_closed_model_refuses(tiny: Path) -> None:
    model = LlamaLocal.open(tiny)
    model.feed([1, 2])
    branch = model.fork()
    model.close()
    model.close()
    branch.close()
    for use in (
        model.sample,
        branch.sample,
        lambda: model.feed([1]),
        lambda: branch.feed([1]),
        lambda: model.rewind(0),
        lambda: model.tokenize("a"),
        lambda: model.piece(77),
        lambda: model.is_end(77),
    ):
        with pytest.raises(ValueError, match="closed"):
            use()


def test_a_model_that_nobody_closes_does_no_harm(tiny: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from sr_edge.local import LlamaLocal\n"
        "model = LlamaLocal.open(Path(sys.argv[1])); model.feed([1, 2]); print(model.sample().id)"
    )
    environment = {**os.environ, "OMP_WAIT_POLICY": "active"}
    done = subprocess.run(
        [sys.executable, "-c", code + "; import os; print(os.environ['OMP_WAIT_POLICY'])", str(tiny)],
        capture_output=True,
        text=True,
        env=environment,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert done.stdout.split()[1] == "active"  # the user's choice stands


def test_the_log_of_llama_cpp_is_kept_and_quoted(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = write_tiny_gguf(tmp_path / "qwen3.gguf", architecture="qwen3")  # lacks what a Qwen 3 has
    with pytest.raises(
        ModelError, match=r"llama\.cpp cannot load it: .*'blk\.0\.attn_k_norm\.weight' not found"
    ):
        LlamaLocal.open(path)
    assert capfd.readouterr() == ("", "")


def test_a_bad_file_never_reaches_llama_cpp(tmp_path: Path) -> None:
    (tmp_path / "page.gguf").write_text("<html>")
    with pytest.raises(ModelError, match="a web page"):
        LlamaLocal.open(tmp_path / "page.gguf")


def test_progress_is_told_and_can_stop_the_loading(tiny: Path) -> None:
    told: list[float] = []
    LlamaLocal.open(tiny, progress=told.append).close()
    assert told[-1] == 1.0

    def interrupt(done: float) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        LlamaLocal.open(tiny, progress=interrupt)


def test_a_quantised_cache_works(tmp_path: Path) -> None:
    path = write_tiny_gguf(tmp_path / "wide.gguf", heads=2)  # Q8_0 packs 32 values
    with LlamaLocal.open(path, kv_type="q8_0", temperature=0) as model:
        model.feed([10, 20, 30])
        assert model.sample().logprob < 0


# --- sampling ---


def written(path: Path, seed: int | None, num_tokens: int = 20) -> list[int]:
    with LlamaLocal.open(path, seed=seed, temperature=1.5) as model:
        model.feed([65, 66])
        return [model.sample().id for _ in range(num_tokens)]


def test_a_seed_repeats_the_text(tiny: Path) -> None:
    assert written(tiny, seed=7) == written(tiny, seed=7)
    assert written(tiny, seed=7) != written(tiny, seed=8)
    assert written(tiny, seed=None) != written(tiny, seed=None)


def test_temperature_0_is_greedy(small: LlamaLocal) -> None:
    small.feed([65, 66, 67])
    logits = logits_of(small)
    assert small.sample().id == logits.argmax()


def test_the_logprob_is_the_models_own(tiny: Path, fresh: LlamaLocal) -> None:
    with LlamaLocal.open(tiny, seed=1, temperature=2.0, top_k=3) as model:
        model.feed([65, 66, 67])
        logits = logits_of(model).astype(np.float64)
        sampled = model.sample(banned=[int(logits.argmax())])
        expected = logits[sampled.id] - logits.max() - math.log(np.exp(logits - logits.max()).sum())
        assert sampled.logprob == pytest.approx(expected, abs=1e-5)


def test_settings_chosen_later_are_those_of_opening(tiny: Path, small: LlamaLocal) -> None:
    def written(model: LlamaLocal) -> list[int]:
        model.rewind(0)
        model.feed([1, 2, 3])
        return [model.sample().id for _ in range(12)]

    greedy = written(small)
    seeded = SamplerSettings(temperature=1.5, top_p=1.0, top_k=0, seed=5)
    with LlamaLocal.open(tiny, temperature=1.5, top_p=1.0, top_k=0, seed=5) as model:
        expected = written(model)
        assert written(model) != expected  # the numbers went on
        model.choose(seeded)
        assert written(model) == expected
        model.choose(SamplerSettings(temperature=0))
        assert written(model) == greedy


def test_entropy_is_that_of_the_next_token(small: LlamaLocal) -> None:
    small.feed([1, 2, 3])
    logits = logits_of(small).astype(np.float64)
    p = np.exp(logits - logits.max())
    p /= p.sum()
    assert small.entropy() == pytest.approx(-(p * np.log(p)).sum(), abs=1e-4)
    assert list(small.ids) == [1, 2, 3]
    likeliest = small.sample().id
    assert likeliest == logits.argmax()


@pytest.mark.parametrize("shift", [-500.0, -80.0, 0.0, 60.0, 500.0])
@pytest.mark.parametrize("native", [True, False])
def test_the_normaliser_is_right_wherever_the_logits_lie(
    native: bool, shift: float, small: LlamaLocal, monkeypatch: pytest.MonkeyPatch
) -> None:
    size = 70_001  # several parts, and some numbers that fill no register
    row = np.random.default_rng(0).normal(0, 5, size).astype(np.float32) + np.float32(shift)
    api = small._llama._api
    summing = llama._ExpSum(api if native else SimpleNamespace(), size)
    if native and hasattr(api._lib, "ggml_vec_soft_max_f32"):
        assert summing._native is not None
    monkeypatch.setattr(small._llama, "_exp_sum", summing)
    found = small._model.log_normaliser(row)
    exact = row.astype(np.float64)
    expected = exact.max() + math.log(np.exp(exact - exact.max()).sum())
    assert found == pytest.approx(expected, abs=2e-4)


def test_a_function_of_llama_cpp_that_miscounts_is_not_used() -> None:
    def wrong(n: int, into: int, row: int, less: float) -> float:
        return 1.0

    assert llama._ExpSum(SimpleNamespace(_lib={"ggml_vec_soft_max_f32": wrong}), 100)._native is None


def test_a_token_costs_no_array_of_the_vocabularys_size(tmp_path: Path) -> None:
    words = [f"word{n}" for n in range(20_000)]
    path = write_tiny_gguf(tmp_path / "wide.gguf", words=words)
    with LlamaLocal.open(path, seed=1) as wide:
        assert wide.markers is not None
        wide.feed(wide.tokenize("hello"))
        wide.sample(wide.markers.close_ids)
        tracemalloc.start()
        try:
            for _ in range(5):
                wide.sample(wide.markers.close_ids, {wide.markers.open_ids[0]: 0.5})
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
    assert peak < 20_000  # a row of logits has four bytes for each token


def test_forbidden_tokens_are_never_sampled(tiny: Path) -> None:
    with LlamaLocal.open(tiny, seed=1, temperature=5.0, top_k=0, top_p=1.0) as model:
        model.feed([65, 66])
        banned = set(range(270))
        assert not {model.sample(banned).id for _ in range(100)} & banned
        with pytest.raises(GenerationError, match="every token is forbidden"):
            model.sample(range(276))


def test_a_ban_holds_for_one_step(small: LlamaLocal) -> None:
    small.feed([65, 66, 67])
    first = small.sample()
    small.rewind(3)
    other = small.sample(banned=[first.id])
    assert other.id != first.id
    assert other.logprob < first.logprob
    small.rewind(3)
    assert small.sample() == first


def test_a_sampled_token_is_decoded_with_what_follows(small: LlamaLocal) -> None:
    small.feed([65, 66, 67])
    opening = small.sample()
    decodes = small._llama.decodes
    small.rewind(3)  # a span that was refused: nothing was decoded for it
    small.sample(banned=[opening.id])
    assert small._llama.decodes == decodes
    small.feed([68, 69])
    assert small._llama.decodes == decodes
    small.sample()
    assert small._llama.decodes == decodes + 1
    assert len(small.ids) == 7


def test_sampling_from_nothing_is_refused(small: LlamaLocal) -> None:
    with pytest.raises(ValueError, match="feed a prompt first"):
        small.sample()


# --- feeding ---


def test_a_probe_reads_the_close_after_each_token(small: LlamaLocal, fresh: LlamaLocal) -> None:
    assert small.markers is not None
    (close,) = small.markers.close_ids
    small.feed([65, 66])
    small.sample()
    ids = [int(id) for id in np.random.default_rng(0).integers(0, 256, 70)]  # more than one batch of outputs
    closes = small.feed(ids, probe=True)
    assert len(closes) == 70
    fresh.rewind(0)
    fresh.feed(small.ids[:3])
    for id, found in zip(ids, closes, strict=True):
        fresh.feed([id])
        logits = logits_of(fresh).astype(np.float64)
        expected = logits[close] - logits.max() - math.log(np.exp(logits - logits.max()).sum())
        assert found == pytest.approx(expected, abs=TOLERANCE)


def test_feeding_without_a_probe_returns_nothing(small: LlamaLocal) -> None:
    assert small.feed([65, 66]) == []
    assert small.feed([]) == []
    assert small.feed([], probe=True) == []
    assert list(small.ids) == [65, 66]


def test_a_full_context_changes_nothing(small: LlamaLocal, fresh: LlamaLocal) -> None:
    small.feed(range(200))
    with pytest.raises(ContextFullError, match="57 tokens for 56 places: the context of 256 tokens is full"):
        small.feed(range(57))
    assert list(small.ids) == list(range(200))
    assert small.room == 56
    expect_as_fresh(small, fresh)
    small.feed(range(56))
    assert small.room == 0
    with pytest.raises(ContextFullError, match="context of 256 tokens is full"):
        small.sample()
    assert len(small.ids) == 256
    small.rewind(100)
    expect_as_fresh(small, fresh)


def test_the_last_place_can_be_sampled_into(small: LlamaLocal) -> None:
    small.feed(range(255))
    small.sample()
    assert (len(small.ids), small.room) == (256, 0)


@pytest.mark.parametrize("result", [1, 2, -1, -3])
def test_a_failed_decode_leaves_the_cursor_as_it_was(
    result: int, small: LlamaLocal, fresh: LlamaLocal, monkeypatch: pytest.MonkeyPatch
) -> None:
    small.feed([65, 66])
    small.sample()
    before = list(small.ids)
    error = ContextFullError if result == 1 else GenerationError
    decode = small._llama._api.llama_decode
    calls = iter([decode, lambda *_: result])  # the second batch of outputs fails
    with monkeypatch.context() as patch:
        patch.setattr(small._llama._api, "llama_decode", lambda *args: next(calls)(*args))
        with pytest.raises(error):
            small.feed(range(50), probe=True)
    assert list(small.ids) == before
    small.feed([67, 68])
    expect_as_fresh(small, fresh)


def test_ctrl_c_leaves_the_cursor_as_it_was(
    small: LlamaLocal, fresh: LlamaLocal, monkeypatch: pytest.MonkeyPatch
) -> None:
    small.feed([65, 66])
    decode = small._llama._api.llama_decode

    def interrupted(*args: object) -> int:
        decode(*args)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(small._llama._api, "llama_decode", interrupted)
        with pytest.raises(KeyboardInterrupt):
            small.feed([1, 2, 3], probe=True)
        assert list(small.ids) == [65, 66]
        with pytest.raises(KeyboardInterrupt):
            small.sample()
    assert list(small.ids) == [65, 66]
    small.feed([67, 68])
    expect_as_fresh(small, fresh)


# --- what would abort the process ---


def test_tokens_outside_the_vocabulary_are_refused(small: LlamaLocal, fresh: LlamaLocal) -> None:
    small.feed([65])
    for id in (-1, 276, 1 << 40):
        for use in (lambda: small.feed([66, id]), lambda: small.sample([id]), lambda: small.piece(id)):  # noqa: B023
            with pytest.raises(ValueError, match="not in the vocabulary of 276"):
                use()
    assert list(small.ids) == [65]
    expect_as_fresh(small, fresh)


def test_what_stops_llama_cpp_is_odd() -> None:
    """Some compilers look at the lowest bit only where a function says yes or no."""
    flag = llama._StopFlag(llama.library().api)
    said = {}
    for by_user, by_watchdog in itertools.product((False, True), repeat=2):
        flag.is_set = by_user
        (flag.alarm if by_watchdog else flag.end_alarm)()
        assert flag.is_set == by_user
        said[by_user, by_watchdog] = ctypes.CDLL("msvcrt" if os.name == "nt" else None).atoi(flag._text)
    assert said.pop((False, False)) == 0
    assert all(number % 2 for number in said.values())


def test_what_llama_cpp_asserts_is_refused_before(small: LlamaLocal) -> None:
    engine = small._llama
    rider = llama.Rider([1], 1, 0)
    for ids, sequence, outputs, riders in (
        ([], 0, (), ()),
        ([], 0, (), (rider,)),
        ([1] * (llama.BATCH + 1), 0, (), ()),
        ([1] * llama.BATCH, 0, (), (rider,)),
        ([1] * (llama.OUTPUTS + 1), 0, range(llama.OUTPUTS + 1), ()),
        ([1] * llama.OUTPUTS, 0, range(llama.OUTPUTS), (rider,)),
        ([1], 0, (1,), ()),
        ([1], 0, (-1,), ()),
        ([1], llama.SEQUENCES, (0,), ()),
        ([1], -1, (0,), ()),
        ([1], 0, (0,), (llama.Rider([1], llama.SEQUENCES, 0),)),
        ([1], 0, (0,), (llama.Rider([276], 1, 0),)),
    ):
        with pytest.raises(ValueError, match=r"batch|outputs|sequence|branch|vocabulary"):
            engine.decode(ids, sequence=sequence, position=0, outputs=outputs, riders=riders)
    engine.decode([1, 2, 3], sequence=1, position=0, outputs=())
    engine.keep(1, 0)
    with pytest.raises(ValueError, match="no logits were computed"):
        engine.sample(engine.new_sampler(temperature=1.0, top_p=1.0, top_k=0, seed=0))
    with pytest.raises(ValueError, match="no logits were computed"):
        engine.logits(1)


@pytest.mark.parametrize("n", [-1, 3])
def test_rewinding_and_forking_stay_inside(n: int, small: LlamaLocal) -> None:
    small.feed([65, 66])
    with pytest.raises(ValueError, match="of 2 tokens"):
        small.rewind(n)
    with pytest.raises(ValueError, match="of 2 tokens"):
        small.fork(n)


@pytest.mark.parametrize("n_ctx", [1, 33, 300])
def test_any_size_of_context_can_be_filled(n_ctx: int, tiny: Path) -> None:
    with LlamaLocal.open(tiny, n_ctx=n_ctx) as model:
        for probe in (False, True):
            model.rewind(0)
            model.feed([65] * n_ctx, probe=probe)
            assert model.room == 0
            with pytest.raises(ContextFullError):
                model.feed([65])


def test_probabilities_that_are_no_numbers_are_told(small: LlamaLocal) -> None:
    small.feed([65, 66])
    small._logits()[7] = math.nan
    with pytest.raises(GenerationError, match="not numbers"):
        small.sample()
    assert list(small.ids) == [65, 66]


# --- forks ---


def test_a_span_and_a_draft_share_one_step(small: LlamaLocal, fresh: LlamaLocal) -> None:
    small.feed(range(60, 80))
    marker = small.sample().id
    with small.fork(20, greedy=False) as draft:
        decodes = small._llama.decodes
        draft.sample(banned=[marker])
        assert small._llama.decodes == decodes, "both stand on the same logits"
        draft.sample()
        assert small._llama.decodes == decodes + 1, "the marker went along"
        closes = small.feed([80, 81, 82], probe=True)
        draft.sample()
        assert small._llama.decodes == decodes + 2, "the draft's token went along"
        expect_as_fresh(draft, fresh)
        expect_as_fresh(small, fresh)
        fresh.rewind(0)
        fresh.feed([*range(60, 80), marker])
        assert closes == pytest.approx(fresh.feed([80, 81, 82], probe=True), abs=TOLERANCE)


def test_a_step_that_fails_leaves_those_who_went_along_as_they_were(
    small: LlamaLocal, fresh: LlamaLocal
) -> None:
    small.feed(range(60, 80))
    with small.fork() as draft:
        draft.sample()
        small.stop()
        with pytest.raises(StoppedError):
            small.feed([80, 81], probe=True)
        small.go_on()
        assert (len(small.ids), len(draft.ids)) == (20, 21)
        for cursor in (draft, small):
            expect_as_fresh(cursor, fresh)
            cursor.sample()
            expect_as_fresh(cursor, fresh)


def test_what_is_not_probed_does_not_pile_up(small: LlamaLocal, fresh: LlamaLocal) -> None:
    for n in range(12):
        small.feed(range(10 * n, 10 * n + 10))
        assert len(small.ids) - small._decoded <= 30
    small.stop()
    small.feed([7])  # a marker, after a stop
    small.go_on()
    assert len(small.ids) == 121
    expect_as_fresh(small, fresh)


def test_only_the_wanted_places_are_probed(small: LlamaLocal) -> None:
    small.feed([65, 66])
    ids = [int(id) for id in np.random.default_rng(1).integers(0, 256, 150)]
    everywhere = small.feed(ids, probe=True)
    for wanted in (
        [n % 7 == 3 for n in range(150)],
        [n < 40 for n in range(150)],  # more than one batch of outputs, none of them the last
        [n < llama.OUTPUTS for n in range(150)],
        [n == 149 for n in range(150)],
        [True] * 150,
    ):
        small.rewind(2)
        decodes = small._llama.decodes
        closes = small.feed(ids, probe=wanted)
        assert closes == pytest.approx(
            [close for close, is_wanted in zip(everywhere, wanted, strict=True) if is_wanted], abs=TOLERANCE
        )
        assert small._llama.decodes - decodes == math.ceil((sum(wanted) + (not wanted[-1])) / llama.OUTPUTS)


def test_a_fork_of_a_beginning_has_no_logits_yet(small: LlamaLocal, fresh: LlamaLocal) -> None:
    """Even where it becomes as long as what it was forked from."""
    small.feed(range(60, 80))
    small.entropy()
    with small.fork(17) as branch:
        branch.feed([1, 2, 3])
        expect_as_fresh(branch, fresh)
        small.adopt(branch)
    expect_as_fresh(small, fresh)


def test_a_fork_is_independent(small: LlamaLocal, fresh: LlamaLocal) -> None:
    small.feed(range(40))
    with small.fork(30) as branch:
        assert list(branch.ids) == list(range(30))
        assert small.room == branch.room == 256 - 40
        for _ in range(5):
            branch.sample()
        branch.feed([1, 2, 3])
        assert small.room == 256 - 40 - 9  # one shared cell was decoded anew, for its logits
        small.feed([7, 8])
        small.rewind(35)
        expect_as_fresh(branch, fresh)
        expect_as_fresh(small, fresh)
        small.rewind(10)
        assert small.room == 256 - 10 - 28  # what it gave up, the branch still holds
        expect_as_fresh(branch, fresh)
    assert small.room == 256 - 10
    expect_as_fresh(small, fresh)


def test_a_fork_goes_on_from_the_same_logits(small: LlamaLocal) -> None:
    small.feed([65, 66, 67])
    expected = small.sample()
    decodes = small._llama.decodes
    with small.fork(3) as branch:
        assert branch.sample() == expected
        assert small._llama.decodes == decodes
        branch.sample()
        small.rewind(3)
        again = small.sample()  # the branch's logits are not ours
        assert again.id == expected.id
        assert again.logprob == pytest.approx(expected.logprob, abs=TOLERANCE)


def test_a_fork_is_greedy(tiny: Path) -> None:
    with LlamaLocal.open(tiny, temperature=5.0, seed=1) as model:
        model.feed([65, 66])
        continuations = set()
        for _ in range(3):
            with model.fork() as branch:
                continuations.add(tuple(branch.sample().id for _ in range(8)))
        assert len(continuations) == 1


def test_forks_of_forks_and_their_limit(small: LlamaLocal, fresh: LlamaLocal) -> None:
    small.feed(range(20))
    with small.fork() as one, one.fork(10) as two, two.fork(0) as three:
        three.feed([1, 2])
        two.feed([3])
        one.feed([4])
        for cursor in (small, one, two, three):
            expect_as_fresh(cursor, fresh)
        with pytest.raises(GenerationError, match="3 branches already: close one"):
            small.fork()
        one.close()
        one.close()
        with pytest.raises(ValueError, match="closed"):
            one.sample()
        with small.fork() as again:
            again.feed([5])
            for cursor in (small, two, three, again):
                expect_as_fresh(cursor, fresh)
    assert small.room == 256 - 20


def test_a_branch_may_sample_as_its_parent_does(tiny: Path) -> None:
    with LlamaLocal.open(tiny, temperature=5.0, seed=1) as model:
        model.feed([65, 66])
        continuations = set()
        for _ in range(3):
            with model.fork(greedy=False) as branch:
                continuations.add(tuple(branch.sample().id for _ in range(8)))
        assert len(continuations) == 3


def test_an_adopted_branch_is_gone_on_from_without_decoding_anything(
    small: LlamaLocal, fresh: LlamaLocal
) -> None:
    small.feed(range(40))
    branch = small.fork(30, greedy=False)
    for _ in range(5):
        branch.sample()
    ids = list(branch.ids)
    small.rewind(20)
    decodes = small._llama.decodes
    small.adopt(branch)
    assert small._llama.decodes == decodes
    assert list(small.ids) == ids
    assert small.room == 256 - len(ids)
    with pytest.raises(ValueError, match="closed"):
        branch.sample()
    expect_as_fresh(small, fresh)


def test_only_an_own_branch_is_adopted(small: LlamaLocal) -> None:
    small.feed([65, 66])
    with small.fork() as one, one.fork() as two, pytest.raises(ValueError, match="branch of this cursor"):
        small.adopt(two)


def test_a_closed_fork_refuses(small: LlamaLocal) -> None:
    small.feed([65, 66])
    branch = small.fork()
    branch.sample()
    branch.rewind(2)
    branch.close()
    for use in (branch.sample, lambda: branch.feed([1]), lambda: branch.rewind(0), branch.fork):
        with pytest.raises(ValueError, match="closed"):
            use()
    assert list(small.ids) == [65, 66]


# --- the invariant ---

operations = st.lists(
    st.one_of(
        st.tuples(st.just("feed"), st.lists(st.integers(0, 275), min_size=1, max_size=40), st.booleans()),
        st.tuples(st.just("sample"), st.sets(st.integers(0, 275), max_size=3)),
        st.tuples(st.just("rewind"), st.floats(0, 1)),
        st.tuples(st.just("fork"), st.floats(0, 1), st.integers(0, 3)),
        st.tuples(st.just("adopt"), st.floats(0, 1), st.integers(0, 3)),
    ),
    max_size=10,
)


@settings(max_examples=40)
@given(operations=operations)
def test_a_cursor_goes_on_as_a_fresh_one_would(
    operations: list[tuple], opened: LlamaLocal, fresh: LlamaLocal
) -> None:
    model = opened
    model.rewind(0)
    model.feed([65, 66])
    ids = [65, 66]
    for name, *arguments in operations:
        if name == "feed" and len(arguments[0]) <= model.room:
            closes = model.feed(arguments[0], probe=arguments[1])
            assert len(closes) == (len(arguments[0]) if arguments[1] else 0)
            ids += arguments[0]
        elif name == "sample" and model.room:
            ids.append(model.sample(arguments[0]).id)
            assert ids[-1] not in arguments[0]
        elif name == "rewind":
            model.rewind(max(1, round(arguments[0] * len(ids))))
            del ids[max(1, round(arguments[0] * len(ids))) :]
        elif name == "fork":
            with model.fork(max(1, round(arguments[0] * len(ids)))) as branch:
                for _ in range(min(arguments[1], model.room)):
                    branch.sample()
                if branch.room:
                    expect_as_fresh(branch, fresh)
        elif name == "adopt":
            branch = model.fork(max(1, round(arguments[0] * len(ids))), greedy=False)
            for _ in range(min(arguments[1], model.room)):
                branch.sample()
            ids = list(branch.ids)
            model.adopt(branch)
        assert list(model.ids) == ids
        assert model.room == 256 - len(ids)
    if model.room:
        expect_as_fresh(model, fresh)


# --- stopping ---


@contextmanager
def stopped_after(model: LlamaLocal, seconds: float) -> Iterator[None]:
    timer = threading.Timer(seconds, model.stop)
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        timer.join()
        model.go_on()


@pytest.fixture(scope="module")
def demo() -> Iterator[LlamaLocal]:
    with LlamaLocal.open(demo_paths().big, temperature=0) as model:
        yield model


@pytest.fixture(scope="module")
def fresh_demo() -> Iterator[LlamaLocal]:
    with LlamaLocal.open(demo_paths().big, temperature=0) as model:
        yield model


def test_a_stop_at_any_moment_leaves_the_cursor_as_before_the_call(
    demo: LlamaLocal, fresh_demo: LlamaLocal
) -> None:
    """In a long prefill, with and without looks at p(close), and between tokens."""
    rng = random.Random(0)
    words = demo.tokenize(" ".join(str(n) for n in range(400)))[:900]
    demo.rewind(0)
    began = time.perf_counter()
    demo.feed(words)
    whole = time.perf_counter() - began
    num_stopped = 0
    for _ in range(25):
        demo.rewind(rng.randint(0, min(300, len(demo.ids))))
        while len(demo.ids) < 3 or (len(demo.ids) < 900 and rng.random() < 0.5):
            demo.feed(words[len(demo.ids) : len(demo.ids) + 40])
            if rng.random() < 0.5:
                demo.sample()  # not decoded yet
        rest = words[len(demo.ids) : 900]
        before = list(demo.ids)
        with stopped_after(demo, rng.uniform(0, whole * len(rest) / 900)):
            try:
                demo.feed(rest, probe=rng.random() < 0.5)
            except StoppedError:
                num_stopped += 1
                assert list(demo.ids) == before
        demo.feed(words[: rng.randint(0, 5)])
        expect_as_fresh(demo, fresh_demo, TRAINED_TOLERANCE)
    assert num_stopped >= 5


def test_a_stop_between_two_tokens_samples_nothing(demo: LlamaLocal, fresh_demo: LlamaLocal) -> None:
    rng = random.Random(1)
    for _ in range(10):
        demo.rewind(0)
        demo.feed(demo.tokenize("Ida fills 28 bags with 4 coins each."))
        length = 0
        with stopped_after(demo, rng.uniform(0, 0.05)), suppress(StoppedError):
            while len(demo.ids) < 1000:
                length = len(demo.ids)
                demo.sample()
        assert len(demo.ids) - length <= 1
        expect_as_fresh(demo, fresh_demo, TRAINED_TOLERANCE)


def test_a_stop_holds_until_it_is_undone(small: LlamaLocal, fresh: LlamaLocal) -> None:
    small.feed(range(40, 60))
    small.stop()
    for _ in range(2):
        with pytest.raises(StoppedError):
            small.feed(range(40, 80))
        with pytest.raises(StoppedError):
            small.feed([40], probe=True)
    small.go_on()
    small.sample()
    small.stop()
    with pytest.raises(StoppedError):
        small.sample()  # the one before has no cell yet
    small.go_on()
    assert len(small.ids) == 21
    expect_as_fresh(small, fresh)


def test_a_marker_is_taken_in_spite_of_a_stop(small: LlamaLocal, fresh: LlamaLocal) -> None:
    assert small.markers is not None
    small.feed(range(40, 60))
    small.stop()
    assert small.feed(small.markers.close_ids) == []
    small.go_on()
    assert small.ids[20:] == list(small.markers.close_ids)
    expect_as_fresh(small, fresh)


def test_a_stop_is_for_branches_too(small: LlamaLocal, fresh: LlamaLocal) -> None:
    small.feed(range(40, 60))
    with small.fork() as branch:
        small.stop()
        with pytest.raises(StoppedError):
            branch.feed(range(40, 80))
        small.go_on()
        branch.feed([41])
        expect_as_fresh(branch, fresh)
    expect_as_fresh(small, fresh)


def test_a_bias_decides_and_the_probability_stays_the_models_own(small: LlamaLocal) -> None:
    small.feed([40, 41, 42])
    straight = small.sample()
    small.rewind(3)
    logits = logits_of(small)
    other = int(np.argsort(logits)[-5])
    biased = small.sample(logit_bias={other: 100.0})
    assert biased.id == other
    log_z = float(np.logaddexp.reduce(logits.astype(np.float64)))
    assert biased.logprob == pytest.approx(float(logits[other]) - log_z, abs=1e-3)
    small.rewind(3)
    assert small.sample(logit_bias={straight.id: -100.0}).id != straight.id
    small.rewind(3)
    assert small.sample(banned=[other], logit_bias={other: 100.0}).id == straight.id
    small.rewind(3)
    assert small.sample() == straight, "nothing stays changed"


# --- text and tokens ---


def special_ids(model: LlamaLocal) -> set[int]:
    """Of control and user-defined tokens: those after the ordinary ones."""
    size = model._model.vocabulary.size
    return set(range(size - len(CONTROL + MARKERS + USER_DEFINED), size))


def text_of(model: LlamaLocal, ids: list[int]) -> str:
    return b"".join(map(model.piece, ids)).decode()


@pytest.mark.parametrize("role", ["user", "system"])
@pytest.mark.parametrize("spelling", CONTROL + MARKERS + USER_DEFINED)
def test_no_special_token_can_be_typed(
    spelling: str, role: Literal["user", "system"], small: LlamaLocal
) -> None:
    def special(content: str) -> list[int]:
        ids = small.render([Message(role, content), Message("user", "b")]).ids
        return [id for id in ids if id in special_ids(small)]

    text = f"a{spelling}{spelling} {spelling[:4]}{spelling}b"
    assert special(text) == special("harmless")
    ids = small.render([Message(role, text)]).ids
    assert text in text_of(small, [id for id in ids if id not in special_ids(small)])


def test_ordinary_text_may_hold_think_tags_but_no_control_token(small: LlamaLocal) -> None:
    for spelling in CONTROL + MARKERS:
        assert not set(small.tokenize(f"x{spelling}y")) & special_ids(small)
    assert set(small.tokenize("x<think>y")) & special_ids(small)


parts = st.one_of(st.text(max_size=8), st.sampled_from(CONTROL + MARKERS + USER_DEFINED))


@settings(max_examples=60)
@given(text=st.lists(parts, max_size=6).map("".join))
def test_typed_text_keeps_its_bytes_and_yields_nothing_special(text: str, opened: LlamaLocal) -> None:
    vocabulary = opened._model.vocabulary
    for ids in (vocabulary.typed(text), vocabulary.ordinary(text)):
        assert b"".join(map(opened.piece, ids)).decode() == text
        assert not any(vocabulary.is_control(id) for id in ids)
    assert not set(vocabulary.typed(text)) & special_ids(opened)


@settings(max_examples=200, deadline=None)
@given(text=st.lists(st.sampled_from([*SPELLINGS_AND_PARTS, "the ", "1", "é"]), max_size=12).map("".join))
def test_text_without_special_tokens_is_cut_as_any_other(text: str, opened: LlamaLocal) -> None:
    vocabulary = opened._model.vocabulary
    control, every = vocabulary._special_spellings()
    assert vocabulary.ordinary(text) == vocabulary._tokenize_apart(text, control)
    assert vocabulary.typed(text) == vocabulary._tokenize_apart(text, every)


def test_text_without_special_tokens_needs_no_look_at_the_whole_vocabulary(tiny: Path) -> None:
    with LlamaLocal.open(tiny) as model, count_calls(model) as calls:
        model.render([Message("user", "the hello 12"), Message("assistant", "er"), Message("user", "ll")])
        model.tokenize("the other")
        assert calls["llama_vocab_get_attr"] <= 20  # once for each token that occurs
        model.tokenize(OPEN)
        assert calls["llama_vocab_get_attr"] >= model._model.vocabulary.size


def test_a_prompt_is_tokenised_in_one_pass(tiny: Path) -> None:
    with LlamaLocal.open(tiny) as model, count_calls(model) as calls:
        messages = [Message("user", "hello " * 200), Message("assistant", "the " * 200)] * 5
        prompt = model.render([*messages, Message("user", "and?")])
        assert calls.bytes_tokenized <= len(prompt.text.encode())


def test_overlapping_spellings_are_all_cut(tmp_path: Path) -> None:
    nested = ["<a>", "a>b", "<a>b", "xx"]
    with LlamaLocal.open(write_tiny_gguf(tmp_path / "nested.gguf", user_defined=nested)) as model:
        vocabulary = model._model.vocabulary
        ids = vocabulary.typed("<a>b<a>xxxb")
        assert b"".join(map(model.piece, ids)) == b"<a>b<a>xxxb"
        assert not {vocabulary.spelling(id) for id in ids} & set(nested)


def test_lone_surrogates_of_a_command_line_are_survived(small: LlamaLocal) -> None:
    assert text_of(small, small.tokenize("a\udc80b")) == "a?b"


def test_the_prompt_is_scaffold_and_contents(small: LlamaLocal) -> None:
    prompt = small.render([Message("user", "hello")])
    vocabulary = small._model.vocabulary
    start, end = vocabulary.control_id("<|im_start|>"), vocabulary.control_id("<|im_end|>")
    think = vocabulary.scaffold("<think>")[0]
    expected = [start, *small.tokenize("user\n"), *small.tokenize("hello"), end, *small.tokenize("\n")]
    expected += [start, *small.tokenize("assistant\n"), think, *small.tokenize("\n")]
    assert list(prompt.ids) == expected
    assert prompt.text == "<|im_start|>user\nhello<|im_end|>\n<|im_start|>assistant\n<think>\n"
    assert prompt.opening == "<think>\n"


def test_an_earlier_answer_may_hold_think_tags(small: LlamaLocal) -> None:
    think = small._model.vocabulary.scaffold("<think>")[0]
    answer = Message("assistant", "<think>\nhm\n</think>\nyes <|im_end|>")
    ids = small.render([Message("user", "a"), answer, Message("user", "b")]).ids
    assert ids.count(think) == 2
    assert ids.count(small._model.vocabulary.control_id("<|im_end|>")) == 3


@pytest.mark.parametrize("template", ["{{ bos_token }}" + CHATML, CHATML])
def test_a_prompt_begins_with_one_bos(template: str, tmp_path: Path) -> None:
    path = write_tiny_gguf(tmp_path / "bos.gguf", template=template, add_bos=True)
    with LlamaLocal.open(path) as model:
        bos = model._model.vocabulary.control_id("<|endoftext|>")
        ids = model.render([Message("user", "<|endoftext|>")]).ids
        assert ids[0] == bos
        assert ids.count(bos) == 1


def test_a_model_without_a_template_continues_the_text(tmp_path: Path) -> None:
    with LlamaLocal.open(write_tiny_gguf(tmp_path / "base.gguf", template=None)) as model:
        prompt = model.render([Message("user", "Once <|im_end|>")])
        assert prompt.text == "Once <|im_end|>"
        assert text_of(model, list(prompt.ids)) == prompt.text


def test_a_template_that_fails_names_the_model(tmp_path: Path) -> None:
    path = write_tiny_gguf(tmp_path / "broken.gguf", template="{{ raise_exception('no') }}")
    with (
        LlamaLocal.open(path) as model,
        pytest.raises(ModelError, match=r"^tiny: its .* fails: no"),
    ):
        model.render([Message("user", "a")])


def test_pieces(tmp_path: Path) -> None:
    words = ["Ġ" * 128]
    with LlamaLocal.open(write_tiny_gguf(tmp_path / "words.gguf", words=words)) as model:
        vocabulary = model._model.vocabulary
        spellings = {vocabulary.spelling(id): id for id in range(vocabulary.size)}
        assert model.piece(spellings["Ġ" * 128]) == b" " * 128  # longer than any fixed buffer
        assert model.piece(spellings["Ġthe"]) == b" the"
        assert model.piece(spellings["<|im_end|>"]) == b""
        assert model.piece(spellings[OPEN]) == b""
        assert model.piece(spellings["<think>"]) == b"<think>"
        assert model.piece(spellings["Ã"]) == b"\xc3"
        assert model.is_end(spellings["<|im_end|>"])
        assert not model.is_end(spellings["<think>"])


# --- markers ---


def test_a_model_without_markers(tmp_path: Path) -> None:
    with LlamaLocal.open(write_tiny_gguf(tmp_path / "plain.gguf", control=CONTROL)) as model:
        assert model.markers is None
        assert model.feed([65, 66], probe=True) == [-math.inf, -math.inf]
        model.sample()


def test_only_control_tokens_are_markers(tmp_path: Path) -> None:
    path = write_tiny_gguf(tmp_path / "user.gguf", control=CONTROL, user_defined=USER_DEFINED + MARKERS)
    with LlamaLocal.open(path) as model:
        assert model.markers is None


def test_markers_that_the_metadata_promise_must_exist(tmp_path: Path) -> None:
    path = write_tiny_gguf(
        tmp_path / "lying.gguf", control=CONTROL, metadata={"sr_edge.markers.form": "token"}
    )
    with pytest.raises(MarkerError, match=r"lying\.gguf: the metadata says"):
        LlamaLocal.open(path)


def test_text_markers_are_probed_by_what_can_begin_them(tmp_path: Path) -> None:
    words = ["Ġ<\\", "x</", "</p", ">ĊĊ</", "</bigmodel", "<", "</bigmodel>"]
    path = write_tiny_gguf(
        tmp_path / "text.gguf", control=CONTROL, words=words[:5], metadata={"sr_edge.markers.form": "text"}
    )
    with LlamaLocal.open(path, temperature=0) as model:
        assert model.markers is not None
        assert model.markers.form == "text"
        assert len(model.markers.open_ids) > 1
        (found,) = model.feed([65], probe=True)
        logits = logits_of(model).astype(np.float64)
        p = np.exp(logits - logits.max())
        spellings = [model._model.vocabulary.spelling(id) for id in range(len(p))]
        begin = [id for id, spelling in enumerate(spellings) if spelling in CAN_BEGIN_A_CLOSE]
        assert len(begin) == len(CAN_BEGIN_A_CLOSE)
        assert math.exp(found) == pytest.approx(p[begin].sum() / p.sum(), rel=1e-4)


CAN_BEGIN_A_CLOSE = {"</", ".</", "Ġ</", "Ġ<\\", ">ĊĊ</", "</bigmodel"}


# --- threads ---


def test_cores_are_counted() -> None:
    assert 1 <= processor.physical_cores() <= (os.cpu_count() or 1)
    assert 1 <= processor.default_threads() <= processor.physical_cores()
    assert processor._cpu_list("0-3,8\n".strip()) == {0, 1, 2, 3, 8}
    assert processor._cpu_list("") == set()
