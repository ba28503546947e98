"""How far a file may be from its checkpoint, by the type of its weights.

A file in float32 computes the same function: what remains is the order of sums. It was 2e-5 in logits over
random models of 4 and of 28 layers; 1e-3 leaves room for large ones, and no wrong tensor stays under it.

In any other type the weights are other numbers, so distributions are compared, not logits. For models of
1.5B, Q4_K_M is typically at a mean KL divergence of 0.02 to 0.06, 92 to 95 % of the same first choices and a
perplexity of +1.5 to 4 %; Q5_K_M at a third of that, Q8_0 at 0.001. The limits are some ten times what is
typical: twice what random weights of 4 and 28 layers lose, which have learnt no robustness. They are there to
find files that are wrong, not to rank quantisations; what is wrong and costs less than the quantisation is
found in the weights themselves, whose limits are in `weights`. llama.cpp
multiplies 16-bit weights with activations of 16 bits: those of bfloat16 have 8 bits of mantissa, and cost
half as much as Q8_0.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Limits:
    max_logit: float | None
    """Largest difference of any logit; None where distributions are compared instead."""
    mean_kl: float
    """Nats."""
    top1: float
    """Share of the positions with the same first choice, among those where the checkpoint has a clear one: at
    least twice as likely as its second. (In a near tie any rounding decides.)"""
    perplexity: float
    """Largest ratio of the two perplexities, either way. A change that is within three standard errors of
    zero is none: the positions are too few to tell."""
    gap: float
    """Nats by which the checkpoint may prefer its own token to the file's, where greedy texts part."""
    probability: float
    """Mean difference of the probability of a marker."""


EXACT = Limits(1e-3, mean_kl=1e-5, top1=1.0, perplexity=1.0005, gap=2e-3, probability=1e-4)

_BY_FAMILY = (
    ("F16", Limits(None, mean_kl=0.002, top1=0.99, perplexity=1.01, gap=0.2, probability=0.01)),
    ("BF16", Limits(None, mean_kl=0.005, top1=0.98, perplexity=1.02, gap=0.4, probability=0.02)),
    ("Q8", Limits(None, mean_kl=0.01, top1=0.98, perplexity=1.02, gap=0.4, probability=0.02)),
    ("Q6", Limits(None, mean_kl=0.06, top1=0.95, perplexity=1.05, gap=1.0, probability=0.03)),
    ("Q5", Limits(None, mean_kl=0.2, top1=0.85, perplexity=1.1, gap=1.5, probability=0.05)),
    ("Q4 IQ4 MXFP4 NVFP4", Limits(None, mean_kl=0.6, top1=0.6, perplexity=1.2, gap=3.0, probability=0.1)),
    ("Q3 IQ3", Limits(None, mean_kl=1.5, top1=0.4, perplexity=1.5, gap=4.0, probability=0.15)),
)
_COARSEST = Limits(None, mean_kl=4.0, top1=0.1, perplexity=3.0, gap=8.0, probability=0.25)
"""Of two bits and fewer: such files may be useless without being wrong."""

FEWEST_POSITIONS = 64
"""Below it shares and means say little: a share of 0.95 of 64 is known to 0.03."""


def limits_of(type: str) -> Limits:
    """Args:
    type: as llama.cpp names file types, `q4_k_m`.
    """
    name = type.upper()
    if name == "F32":
        return EXACT
    for families, limits in _BY_FAMILY:
        if any(name.startswith(family) for family in families.split()):
            return limits
    return _COARSEST


def file_type(number: object) -> str:
    """The name of `general.file_type`; a file without a known one is taken as 4-bit."""
    from gguf import LlamaFileType

    try:
        name = LlamaFileType(int(str(number)) & ~LlamaFileType.GUESSED).name
    except ValueError:
        return "q4_0"
    return name.removeprefix("MOSTLY_").removeprefix("ALL_").lower()
