"""The file's logits against the checkpoint's, position by position, and what they make of the markers."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sr_convert.verify.limits import FEWEST_POSITIONS, Limits
from sr_convert.verify.passages import Decision, Passage
from sr_convert.verify.report import Judgement, Row
from sr_edge.errors import ModelError
from sr_edge.markers import Markers

_BLOCK = 32
"""Positions that are compared at once, in 64 bits: 40 MB for a vocabulary of 152,000."""
_CLEAR = math.log(2)
"""Nats by which the checkpoint's first choice is ahead of its second where it counts as clear."""
_TIE = 1e-4
"""Logits nearer than this are equal but for the order of sums."""
_MAX_LOSS = 700.0
"""Nats that can still be raised to a power."""
OPEN_ABOVE = 0.5
"""p(open) above which asking for help is the likeliest thing to do."""

Logits = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Compared:
    """Some positions. Arrays of a value for each; `losses` of one for each that has a next id."""

    max_logit: NDArray[np.float64]
    mean_logit: NDArray[np.float64]
    same_first: NDArray[np.bool_]
    is_clear: NDArray[np.bool_]
    kl: NDArray[np.float64]
    losses: NDArray[np.float64]
    """Negative log-likelihood of the next id, shape (2, positions): the checkpoint's, the file's."""
    decisions: NDArray[np.float64]
    """Probability of the marker, shape (2, decisions)."""


def joined(parts: Sequence[Compared]) -> Compared:
    return Compared(
        np.concatenate([one.max_logit for one in parts]),
        np.concatenate([one.mean_logit for one in parts]),
        np.concatenate([one.same_first for one in parts]),
        np.concatenate([one.is_clear for one in parts]),
        np.concatenate([one.kl for one in parts]),
        np.concatenate([one.losses for one in parts], axis=1),
        np.concatenate([one.decisions for one in parts], axis=1),
    )


def compare(own: Logits, theirs: Logits, passage: Passage, ignored: Sequence[int]) -> Compared:
    """Args:
    own: the checkpoint's, shape (positions, rows).
    theirs: the file's; it may have more rows, those of markers that were added.
    ignored: ids that are others in the file, which are left out of both.
    """
    rows = min(own.shape[1], theirs.shape[1])
    kept = np.ones(rows, np.bool_)
    kept[[id for id in ignored if id < rows]] = False
    with np.errstate(all="ignore"):  # a damaged tensor makes numbers that are none: see `judge_logits`
        return joined(list(_blocks(own[:, :rows], theirs[:, :rows], passage, kept)))


def _blocks(own: Logits, theirs: Logits, passage: Passage, kept: NDArray[np.bool_]) -> Iterator[Compared]:
    ids = np.asarray(passage.ids)
    for start in range(0, len(ids), _BLOCK):
        end = min(len(ids), start + _BLOCK)
        a, b = own[start:end].astype(np.float64), theirs[start:end].astype(np.float64)
        difference = np.abs(a - b)[:, kept]
        a[:, ~kept] = b[:, ~kept] = -np.inf
        at = np.arange(end - start)
        first_a, first_b = a.argmax(axis=1), b.argmax(axis=1)
        top, second = a[at, first_a], np.partition(a, -2, axis=1)[:, -2]
        p, q = _log_softmax(a), _log_softmax(b)
        told = at[: len(ids) - start - 1]
        told = told[kept[ids[start + 1 + told]]]
        next_ids = ids[start + 1 + told]
        here = [one for one in passage.decisions if start <= one.position < end]
        rows, columns = [one.position - start for one in here], [one.id for one in here]
        yield Compared(
            max_logit=difference.max(axis=1),
            mean_logit=difference.mean(axis=1),
            same_first=(first_a == first_b) | (top - a[at, first_b] < _TIE),
            is_clear=top - second > _CLEAR,
            kl=(np.exp(p[:, kept]) * (p[:, kept] - q[:, kept])).sum(axis=1),
            losses=-np.stack([p[told, next_ids], q[told, next_ids]]),
            decisions=np.exp(np.stack([p[rows, columns], q[rows, columns]])) if here else np.empty((2, 0)),
        )


def _log_softmax(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    shifted = logits - logits.max(axis=1, keepdims=True)
    result: NDArray[np.float64] = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return result


def judge_logits(compared: Compared, limits: Limits) -> Row:
    """The row of all positions.

    Raises:
        ModelError: the checkpoint's own logits are not numbers.
    """
    figures = _figures(compared)
    if not all(map(math.isfinite, figures.values())):
        detail = "the file's logits are not numbers: a tensor is damaged"
        return Row("logits", "differs", "no numbers", "", detail, {"positions": figures["positions"]})
    if limits.max_logit is not None:
        return _judge_exactly(figures, limits.max_logit)
    return _judge_distributions(figures, limits, _standard_error(compared.losses))


def _figures(compared: Compared) -> dict[str, float]:
    same, clear = compared.same_first, compared.is_clear
    own_loss, loss = map(float, compared.losses.mean(axis=1)) if compared.losses.size else (0.0, 0.0)
    if not math.isfinite(own_loss):
        raise ModelError("the checkpoint's own logits are not numbers: its weights are damaged; get it again")
    return {
        "positions": len(same),
        "max_logit_difference": float(compared.max_logit.max()),
        "mean_logit_difference": float(compared.mean_logit.mean()),
        "top1": float(same.mean()),
        "clear_positions": int(clear.sum()),
        "top1_clear": float(same[clear].mean()) if clear.any() else 1.0,
        "mean_kl": float(compared.kl.mean()),
        "max_kl": float(compared.kl.max()),
        "perplexity_checkpoint": math.exp(min(own_loss, _MAX_LOSS)),
        "perplexity_ratio": math.exp(min(loss - own_loss, _MAX_LOSS)),
    }


def _judge_exactly(figures: dict[str, float], most: float) -> Row:
    n, largest, top1 = int(figures["positions"]), figures["max_logit_difference"], figures["top1"]
    found = f"max |Δ| {largest:.2g}, top-1 {_share(top1)}"
    wrong = []
    if largest >= most:
        wrong.append(f"the largest difference of a logit is {largest:.3g}")
    if top1 < 1:
        wrong.append(f"{_share(1 - top1)} of the positions have another first choice")
    judgement: Judgement = "differs" if wrong else "equal"
    detail = "; ".join([*wrong, _positions(n)])
    return Row("logits", judgement, found, f"max |Δ| < {most:g}, top-1 100 %", detail, figures)


def _judge_distributions(figures: dict[str, float], limits: Limits, standard_error: float) -> Row:
    n, num_clear = int(figures["positions"]), int(figures["clear_positions"])
    ratio, top1_clear = figures["perplexity_ratio"], figures["top1_clear"]
    has_enough = num_clear >= FEWEST_POSITIONS
    clear = _share(top1_clear) if has_enough else "-"
    found = f"KL {figures['mean_kl']:.2g}, clear top-1 {clear}, ppl {_change(ratio)}"
    limit = (
        f"KL ≤ {limits.mean_kl:g}, clear top-1 ≥ {_share(limits.top1)}, "
        f"ppl ± {100 * (limits.perplexity - 1):.3g} %"
    )
    wrong = []
    if figures["mean_kl"] > limits.mean_kl:
        wrong.append(f"the mean KL divergence is {figures['mean_kl']:.3g}")
    if has_enough and top1_clear < limits.top1:
        wrong.append(f"of {num_clear} clear first choices {_share(top1_clear)} are the same")
    change = abs(math.log(ratio))
    if n >= FEWEST_POSITIONS and change > max(math.log(limits.perplexity), 3 * standard_error):
        wrong.append(f"the perplexity changes by {_change(ratio)}")
    said = f"{_positions(n)}, top-1 {_share(figures['top1'])}; {num_clear} first choices are clear, " + (
        "at least twice as likely as the second" if has_enough else "too few to judge by"
    )
    judgement: Judgement = "differs" if wrong else "close"
    return Row("logits", judgement, found, limit, "; ".join([*wrong, said]), figures)


def _standard_error(losses: NDArray[np.float64]) -> float:
    """Of the mean difference."""
    return float(np.std(losses[1] - losses[0]) / math.sqrt(max(1, losses.shape[1])))


def judge_markers(compared: Compared, decisions: Sequence[Decision], markers: Markers, limits: Limits) -> Row:
    """The row of the places where a marker may be written.

    Args:
        decisions: of the passages that were compared, in their order.
    """
    if not decisions:
        return Row("markers", "not checked", "", "", "the context is too short for a marked conversation")
    own, theirs = compared.decisions
    threshold = np.array([OPEN_ABOVE if one.marker == "open" else markers.tau for one in decisions])
    is_open = np.array([one.marker == "open" for one in decisions])
    difference = np.abs(own - theirs)
    same = (own > threshold) == (theirs > threshold)
    near = np.abs(own - threshold) < limits.probability  # there the file may decide either way
    parted = int((~same & ~near).sum())
    figures = {
        "decisions": len(decisions),
        "mean_difference": float(difference.mean()),
        "max_difference": float(difference.max()),
        "mean_open": float(own[is_open].mean()) if is_open.any() else 0.0,
        "mean_close": float(own[~is_open].mean()) if (~is_open).any() else 0.0,
        "same_decisions": float(same.mean()),
        "parted": parted,
    }
    found = (
        f"mean |Δp| {figures['mean_difference']:.2g}, {int(same.sum())} of {len(decisions)} decisions equal"
    )
    limit = f"mean |Δp| ≤ {limits.probability:g}, {_allowed(len(decisions), limits)} may part"
    if not math.isfinite(figures["mean_difference"]):
        return Row("markers", "differs", "no numbers", limit, "the file's logits are not numbers", {})
    if figures["mean_difference"] > limits.probability or parted > _allowed(len(decisions), limits):
        worst = int(difference.argmax())
        detail = (
            f"where the checkpoint gives the {decisions[worst].marker} marker {own[worst]:.3f}, "
            f"the file gives it {theirs[worst]:.3f}"
        )
        return Row("markers", "differs", found, limit, detail, figures)
    never = max(own.max(), theirs.max()) < 0.01
    detail = "neither ever comes near to writing a marker: this says little" if never else ""
    return Row("markers", "equal" if limits.max_logit else "close", found, limit, detail, figures)


def _allowed(n: int, limits: Limits) -> int:
    """Decisions that may differ though they were clear: the share in which first choices may."""
    return math.floor(n * (1 - limits.top1))


def _positions(n: int) -> str:
    return f"{n} positions" + (", which are few" if n < FEWEST_POSITIONS else "")


def _share(value: float) -> str:
    text = f"{100 * value:.1f}"
    return f"{text.removesuffix('.0')} %" if value in (0, 1) or text != "100.0" else "99.9 %"


def _change(ratio: float) -> str:
    return f"{100 * (ratio - 1):+.2g} %"
