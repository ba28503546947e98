"""The checkpoint as transformers computes it, in 32 bits on the CPU.

The only room that uses torch, transformers and peft, which come with an extra; without them there is no
reference, and `why_not` says so. Nothing is fetched, no code from the checkpoint runs, only safetensors are
read. (They are loaded by name: to follow transformers' types takes a type checker a minute.)
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from sr_edge.doctor.machine import Memory
from sr_edge.errors import EdgeError, ModelError

_FIXED = 600 << 20
"""Bytes that torch and transformers take before there is a model, and what a pass over it needs."""


def is_installed() -> bool:
    return all(find_spec(package) is not None for package in ("torch", "transformers"))


def bytes_needed(shapes: Mapping[str, tuple[int, ...]]) -> int:
    """Memory for a reference: all parameters in 32 bits."""
    return 4 * sum(map(math.prod, shapes.values())) + _FIXED


def why_not(needed: int, memory: Memory, adapter: Path | None) -> str:
    """Why there can be no reference; empty if there can."""
    if not is_installed():
        return "it needs torch and transformers: pip install 'sr-edge[verify]'"
    if adapter is not None and find_spec("peft") is None:
        return "an adapter is compared with peft: pip install peft"
    if memory.available is not None and needed > memory.available:
        return (
            f"the checkpoint needs {needed / 1e9:.1f} GB of memory in float32, {memory.available / 1e9:.1f} "
            "GB are free: close other programs, or verify it on a larger machine"
        )
    return ""


class Reference:
    """One model in memory."""

    def __init__(self, checkpoint: Path, adapter: Path | None) -> None:
        """Raises: ModelError: transformers or peft cannot load it."""
        self._torch: Any = import_module("torch")
        with quiet_transformers() as transformers:
            try:
                self._model = self._load(transformers, checkpoint, adapter)
            except (OSError, ValueError, RuntimeError, KeyError, TypeError, ImportError) as error:
                reason = " ".join(str(error).split())[:300]
                raise ModelError(
                    f"{adapter or checkpoint}: transformers cannot load it: {reason}: get it again"
                ) from None
        self._model.eval()

    @property
    def num_rows(self) -> int:
        """Logits after each id."""
        return int(self._model.config.vocab_size)

    def logits(self, ids: Sequence[int]) -> NDArray[np.float32]:
        """What is expected after each of the ids, given those before it; shape (ids, rows).

        Raises:
            EdgeError: torch cannot compute it here.
        """
        try:
            with self._torch.inference_mode():
                rows = self._model(input_ids=self._torch.tensor([list(ids)]), use_cache=False).logits[0]
                result: NDArray[np.float32] = rows.float().numpy()
        except RuntimeError as error:  # no memory, most likely
            reason = " ".join(str(error).split())[:300]
            raise EdgeError(f"torch could not compute the checkpoint: {reason}: free some memory") from None
        return result

    def close(self) -> None:
        del self._model

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *args: object) -> None:
        self.close()

    def _load(self, transformers: ModuleType, checkpoint: Path, adapter: Path | None) -> Any:
        model, said = transformers.AutoModelForCausalLM.from_pretrained(
            checkpoint,
            dtype=self._torch.float32,
            attn_implementation="eager",
            local_files_only=True,
            trust_remote_code=False,
            use_safetensors=True,
            output_loading_info=True,
        )
        missing = sorted(said["missing_keys"])
        if missing:
            raise ValueError(f"the tensor {missing[0]} is missing")
        if adapter is None:
            return model
        rows = _embedding_rows(adapter)
        if rows not in (None, model.config.vocab_size):
            model.resize_token_embeddings(rows, mean_resizing=False)
        return import_module("peft").PeftModel.from_pretrained(model, str(adapter)).merge_and_unload()


def _embedding_rows(adapter: Path) -> int | None:
    """Of an adapter that brings a whole embedding, perhaps of another size."""
    safetensors = import_module("safetensors")
    with safetensors.safe_open(adapter / "adapter_model.safetensors", framework="numpy") as file:
        for name in file.keys():  # noqa: SIM118, it is no dictionary
            if name.endswith(("embed_tokens.weight", "embed_tokens.modules_to_save.weight")):
                return int(file.get_slice(name).get_shape()[0])
    return None


@contextmanager
def quiet_transformers() -> Iterator[Any]:
    """The library without its bars and remarks, which go past whoever owns the terminal."""
    transformers: Any = import_module("transformers")
    logging = import_module("transformers.utils.logging")
    level, has_bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity(logging.CRITICAL)
    logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # peft and transformers, about each other
            yield transformers
    finally:
        logging.set_verbosity(level)
        if has_bars:
            logging.enable_progress_bar()
