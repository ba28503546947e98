"""llama.cpp as a library: loading it, and one model with one KV cache.

The only room that imports llama_cpp, and only its low-level bindings. Whatever would make llama.cpp abort the
process (it asserts, it does not raise) is refused here in Python. What a sequence holds, and what it is for,
is `local`'s business.
"""

from __future__ import annotations

import ctypes
import os
import re
import sys
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, cached_property
from importlib import import_module
from importlib.util import find_spec, module_from_spec
from pathlib import Path
from types import ModuleType
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

from sr_edge.calibration import DEFAULT_BATCH, Calibration
from sr_edge.errors import ContextFullError, GenerationError, ModelError, StoppedError, UsageError
from sr_edge.gguf_header import Tensor, read_header
from sr_edge.governor import Governor, Pace
from sr_edge.processor import OtherUse, default_threads, has_amx, physical_cores
from sr_edge.processor import name as processor_name
from sr_edge.repack import repackable
from sr_edge.vocabulary import Vocabulary
from sr_edge.watchdog import Watchdog

BATCH: Final = 512
"""Tokens per call of `decode`, at most."""
OUTPUTS: Final = 32
"""Positions per call of `decode` that yield logits, at most: memory for them is reserved all the time."""
SEQUENCES: Final = 4

KvType = Literal["f32", "f16", "q8_0"]

_ABORTED = 2  # what `llama_decode` returns

_WAITING = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")
"""By these a user says how threads wait for each other."""
_SPINS = "10000"  # looks at a barrier, of some nanoseconds each, before a thread of GNU's OpenMP sleeps

_VERSION = re.compile(r"""^__version__ = ["']([\w.+-]+)["']""", re.MULTILINE)  # of the bindings
_SMALL_MODEL = 64 << 20
"""Bytes of weights below which threads wait for each other longer than they compute."""


class Library:
    """The bindings, and what llama.cpp last complained about; the rest of its log is dropped."""

    def __init__(self, api: ModuleType) -> None:
        self.api = api
        self._errors: list[str] = []
        # The process keeps calling it: the reference must live as long as the library.
        self._callback = api.llama_log_callback(self._log)
        api.llama_log_set(self._callback, None)
        api.llama_backend_init()

    def _log(self, level: int, text: bytes, _: object) -> None:
        if level == 4:  # an error
            self._errors.append(" ".join(text.decode("utf-8", "replace").split()))

    @cached_property
    def system_info(self) -> str:
        """What of the processor is used: `CPU : AVX = 1 | AVX2 = 1 | ... `."""
        return str(self.api.llama_print_system_info().decode("utf-8", "replace"))

    @cached_property
    def governor(self) -> Governor:
        """All models of the process share its cores."""
        return Governor(cores=physical_cores(), others=OtherUse())

    def forget_errors(self) -> None:
        self._errors.clear()

    def complaint(self, otherwise: str) -> str:
        """The first error since `forget_errors`, which is the most exact one."""
        return self._errors[0].split("error loading model: ")[-1][:300] if self._errors else otherwise


@cache
def library() -> Library:
    """Load llama.cpp.

    Its threads meet at some 500 barriers for each token. By default GNU's OpenMP spins there without end,
    which is ruinous on a busy machine: a model of 1.5B on two cores with one other process running wrote 0.3
    tokens a second. So ours spin for some microseconds and then sleep: as fast on an idle machine, and ten
    times as fast on a busy one, from where `governor` takes it on. It can only be chosen before the library
    is loaded; a user's own choice stands.
    """
    if not os.environ.keys() & set(_WAITING):
        os.environ["GOMP_SPINCOUNT"] = _SPINS
    os.environ.setdefault("GGML_NO_BACKTRACE", "1")  # else an abort starts a debugger
    try:
        api = _bindings()
    except (ImportError, OSError, RuntimeError) as error:
        raise ModelError(
            f"llama.cpp cannot be loaded: {error}: install it anew with "
            "`pip install --force-reinstall --no-binary llama-cpp-python llama-cpp-python`"
        ) from None
    return Library(api)


def _bindings() -> ModuleType:
    """llama_cpp's low-level module, without the rest of its package: that takes longer to import."""
    spec = None if "llama_cpp" in sys.modules else find_spec("llama_cpp")
    if spec is not None:
        package = sys.modules["llama_cpp"] = module_from_spec(spec)
        package.__class__ = _LaterPackage
    try:
        return import_module("llama_cpp.llama_cpp")
    except BaseException:
        if spec is not None:
            sys.modules.pop("llama_cpp", None)
        raise


class _LaterPackage(ModuleType):
    """The package before anybody needs more of it than its bindings."""

    def __getattr__(self, name: str) -> Any:
        self.__class__ = ModuleType  # type: ignore[assignment]  # for good: what it lacks is an error
        assert self.__spec__ is not None
        assert self.__spec__.loader is not None
        self.__spec__.loader.exec_module(self)
        return getattr(self, name)


@dataclass(frozen=True, slots=True)
class Rider:
    """Ids that go along in another sequence's batch, appended to one that holds `position` of them."""

    ids: Sequence[int]
    sequence: int
    position: int


class Sampler:
    """Chooses tokens, from random numbers of its own. Closed with its model, if not before."""

    def __init__(self, handles: _Handles, number: int) -> None:
        """For `Llama.new_sampler`."""
        self._handles = handles
        self._number = number

    @property
    def chain(self) -> Any:
        """Raises: ValueError: it is closed, or its model is."""
        return _unless_closed(self._handles.samplers.get(self._number))

    def close(self) -> None:
        self._handles.free_sampler(self._number)


class _Handles:
    """What must be given back to llama.cpp, once and in this order."""

    def __init__(self, api: ModuleType) -> None:
        self.api = api
        self.samplers: dict[int, Any] = {}
        self.num_samplers = 0  # that there ever were
        self.context: Any = None
        self.adapter: Any = None
        self.model: Any = None
        self.vocab: Any = None  # the model's

    def open_vocab(self) -> Any:
        return _unless_closed(self.vocab)

    def open_context(self) -> Any:
        return _unless_closed(self.context)

    def add_sampler(self, chain: Any) -> int:
        self.num_samplers += 1
        self.samplers[self.num_samplers] = chain
        return self.num_samplers

    def free_sampler(self, number: int) -> None:
        chain = self.samplers.pop(number, None)
        if chain is not None:
            self.api.llama_sampler_free(chain)

    def free(self) -> None:
        context, adapter, model = self.context, self.adapter, self.model
        self.context = self.adapter = self.model = self.vocab = None
        for number in list(self.samplers):
            self.free_sampler(number)
        if context is not None:
            self.api.llama_free(context)
        if adapter is not None:
            self.api.llama_adapter_lora_free(adapter)
        if model is not None:
            self.api.llama_model_free(model)


@contextmanager
def open_vocabulary(path: Path) -> Iterator[Vocabulary]:
    """A file's vocabulary without its weights: in milliseconds, and where it has none.

    Raises:
        ModelError: the file is missing or unusable.
    """
    read_header(path, vocabulary_only=True)
    lib = library()
    handles = _Handles(lib.api)
    try:
        handles.model = _load_model(lib, path, vocabulary_only=True)
        handles.vocab = lib.api.llama_model_get_vocab(handles.model)
        yield Vocabulary(lib.api, handles.open_vocab)
    finally:
        handles.free()


class Llama:
    """One model in memory, and one KV cache of several sequences that share its cells.

    A context is not thread-safe: use it from one thread at a time.
    """

    def __init__(
        self,
        path: Path,
        *,
        context_size: int | None,
        threads: int | None,
        gpu_layers: int,
        kv_type: KvType,
        lora: Path | None = None,
        tensors: Sequence[Tensor] = (),
        progress: Callable[[float], None] | None = None,
        sequences: int = SEQUENCES,
        outputs: int = OUTPUTS,
        contexts: int = 1,
    ) -> None:
        """Load. `path` must have passed `read_header`, and `lora` `read_adapter_header`.

        Args:
            context_size: None for what the model was trained for, 8192 at most.
            tensors: of the file, as its header has them; without them more memory may be taken.
            sequences: so many can be told apart.
            outputs: what llama.cpp makes room for, where a subclass decodes more of them at once.
            contexts: of so many conversations there are cells at once, each of `context_size`.
        Raises:
            ModelError, UsageError
        """
        self.files = tuple((file, _stamp(file)) for file in (path, lora) if file is not None)
        """What it was made from, and how old each file was then."""
        self.sequences = sequences
        self.layout = ""
        """How its cells lie in memory: they mean nothing to a cache of another layout."""
        self._library = library()
        self._api = api = self._library.api
        self._handles = handles = _Handles(api)
        self._finalizer = weakref.finalize(self, handles.free)  # at exit too: else Metal aborts there
        self.others = OtherUse()
        """Cores in use by other programs; the first time, since the loading began."""
        try:
            on_gpu = gpu_layers != 0 and bool(api.llama_supports_gpu_offload())
            handles.model = _load_model(
                self._library,
                path,
                gpu_layers=gpu_layers,
                cpu_tensors=() if on_gpu else tensors,
                progress=progress,
            )
            handles.vocab = api.llama_model_get_vocab(handles.model)
            self.vocabulary = Vocabulary(api, handles.open_vocab)
            trained: int = api.llama_model_n_ctx_train(handles.model)
            if context_size is not None and not 0 < context_size <= trained:
                raise UsageError(
                    f"{path}: a context of {context_size} tokens: the model was trained for at most {trained}"
                )
            if threads is not None and threads < 1:
                raise UsageError(f"{threads} threads: there must be at least one")
            if lora is not None:  # before the context, which reserves memory for its steps
                handles.adapter = self._load_adapter(path, lora)
            is_small = path.stat().st_size < _SMALL_MODEL
            self._is_ceiling_given = threads is not None
            threads = threads or (1 if is_small else default_threads())
            self.context_size = context_size or min(trained, 8192)
            rows = sequences, outputs
            cells = contexts * self.context_size
            handles.context = self._open_context(path, threads, kv_type, rows, cells, on_gpu=on_gpu)
            if lora is not None:
                self._set_adapter(path, lora)
        except BaseException:
            self.close()
            raise
        self._stop = _StopFlag(api)
        self._stop.attach(handles.context)
        self.cells: int = api.llama_n_ctx(handles.context)
        """Of all sequences together."""
        self.context_size = min(self.context_size, self.cells)
        self._max_batch = min(BATCH, api.llama_n_batch(handles.context))
        self._batch = _Batch(api, sequences)
        self._row_type = ctypes.c_float * self.vocabulary.size
        self._rows: dict[int, NDArray[np.float32]] = {}
        self._exp_sum = _ExpSum(api, self.vocabulary.size)
        self._threads = self._ceiling = threads
        self._governor = None if is_small or on_gpu or threads == 1 else self._library.governor
        self._pace = Pace()
        self.is_on_cpu = not (is_small or on_gpu)
        """And large enough that its speed depends on threads and batches."""
        self.batch_tokens = DEFAULT_BATCH if self.is_on_cpu else 1
        """So many tokens are best read at once, where they can be waited for."""
        self._watchdog = Watchdog(self._stop.alarm)
        self.decodes = 0
        """How often `decode` was called: logits are those of the last call."""

    @property
    def is_stopped(self) -> bool:
        """While it is set, from any thread, `decode` computes nothing more. Cleared by whoever set it."""
        return self._stop.is_set

    @is_stopped.setter
    def is_stopped(self, value: bool) -> None:
        self._stop.is_set = value

    def close(self) -> None:
        self._finalizer()

    def decode(
        self,
        ids: Sequence[int],
        *,
        sequence: int,
        position: int,
        outputs: Sequence[int],
        riders: Sequence[Rider] = (),
    ) -> None:
        """Append ids to a sequence that holds `position` of them.

        Args:
            outputs: indices in `ids` after which logits are wanted, in order.
            riders: ids of other sequences, computed in the same step: for one or two of them that costs
                little more than the step itself. After the last id of each there are logits.
        Raises:
            ContextFullError, GenerationError: what the sequences hold is then known to `length` alone.
            StoppedError: likewise, because of `is_stopped`.
        """
        context = self._handles.open_context()
        count = len(ids) + sum(len(rider.ids) for rider in riders)
        if not ids or not 0 < count <= self._max_batch:
            raise ValueError(f"a batch of {count}; it can be 1 to {self._max_batch}")
        if len(outputs) + len(riders) > OUTPUTS:
            raise ValueError(f"{len(outputs) + len(riders)} outputs; they can be at most {OUTPUTS}")
        if outputs and not 0 <= outputs[0] <= outputs[-1] < len(ids):
            raise ValueError(f"outputs from {outputs[0]} to {outputs[-1]} of {len(ids)}")
        for rider in riders:
            self._checked(rider.sequence)
        for part in (ids, *(rider.ids for rider in riders)):
            for id in part:
                self.vocabulary.check(id)
        self.decodes += 1
        self._library.forget_errors()
        batch = self._batch.fill(ids, self._checked(sequence), position, outputs, riders)
        is_token = count == 1 and bool(outputs)
        result = self._compute(context, batch, position, is_token=is_token)
        if result == 1:
            raise ContextFullError(
                f"the context of {self.context_size} tokens is full: ask with a larger one, or start anew"
            )
        if result == _ABORTED or (result != 0 and self.is_stopped):
            raise StoppedError("stopped")
        if result != 0:
            reason = self._library.complaint(f"error {result}")
            raise GenerationError(f"llama.cpp could not go on: {reason}: try again with a smaller context")

    def _compute(self, context: Any, batch: Any, position: int, *, is_token: bool) -> int:
        """`llama_decode`, with as many threads as the other programs on this machine leave room for.

        Args:
            is_token: a single one with logits: only these are alike in what they take.
        """
        governor, pace, ceiling = self._governor, self._pace, self._ceiling
        if governor is None:
            return int(self._api.llama_decode(context, batch))
        while True:
            self._set_threads(context, governor.threads(ceiling))
            if not is_token:
                return int(self._api.llama_decode(context, batch))
            limit = governor.limit(pace, ceiling, position)
            began = time.perf_counter()
            try:
                if limit is not None:
                    self._watchdog.begin(limit)
                result = int(self._api.llama_decode(context, batch))
            finally:
                is_overdue = self._watchdog.end()
                self._stop.end_alarm()
            seconds = time.perf_counter() - began
            if result == 0:
                governor.took(pace, ceiling, position, seconds)
            elif result == _ABORTED and is_overdue and not self.is_stopped:
                governor.overran(pace, seconds)
                continue  # llama.cpp has taken the token's cell back
            return result

    def time_decode(self, num_tokens: int, threads: int) -> float:
        """Seconds that so many tokens take in one batch, with so many threads, in an empty cache.

        Raises: StoppedError: see `is_stopped`.
        """
        context = self._handles.open_context()
        if not 0 < num_tokens <= self._max_batch:
            raise ValueError(f"a batch of {num_tokens}; it can be 1 to {self._max_batch}")
        if self.length(0) != 0:
            raise ValueError("speed is measured with an empty cache")
        self.decodes += 1
        self._set_threads(context, threads)
        batch = self._batch.fill([0] * num_tokens, 0, 0, [num_tokens - 1], ())
        began = time.perf_counter()
        result = self._api.llama_decode(context, batch)
        seconds = time.perf_counter() - began
        self.keep(0, 0)
        self._set_threads(context, self._ceiling)
        if result != 0:
            raise (
                StoppedError("stopped")
                if self.is_stopped
                else GenerationError(
                    f"llama.cpp could not decode {num_tokens} tokens: error {result}: try a larger context"
                )
            )
        return seconds

    def settle(self, calibration: Calibration) -> None:
        """Go by what was measured; a number of threads that the user gave stays."""
        if not self.is_on_cpu:
            return
        if not self._is_ceiling_given:
            self._ceiling = calibration.threads
            self._governor = self._library.governor if self._ceiling > 1 else None
            self._set_threads(self._handles.open_context(), self._ceiling)
        self._pace = Pace(calibration.seconds)
        self.batch_tokens = calibration.batch_tokens

    @property
    def machine(self) -> str:
        """All that speed depends on besides llama.cpp and the model."""
        waiting = {key: os.environ.get(key, "") for key in _WAITING}
        return f"{processor_name()}, {physical_cores()} cores, {self._library.system_info}, {waiting}"

    def _set_threads(self, context: Any, threads: int) -> None:
        if threads != self._threads:
            self._api.llama_set_n_threads(context, threads, threads)
            self._threads = threads

    def logits(self, index: int = -1) -> NDArray[np.float32]:
        """Logits after the token at `index` of the last batch, shape (vocabulary,); -1 for the last output.

        The riders follow each other after the ids. They lie in llama.cpp's own buffer: valid, and writable,
        until the next `decode`.
        """
        row = self._api.llama_get_logits_ith(self._handles.open_context(), index)
        if not row:
            raise ValueError(f"no logits were computed at {index}")
        address = ctypes.addressof(row.contents)
        if (view := self._rows.get(address)) is None:  # the same few places each time
            view = np.frombuffer(memoryview(self._row_type.from_address(address)), np.float32)
            self._rows[address] = view
        return view

    def exp_sum(self, logits: NDArray[np.float32], less: float = 0.0) -> float:
        """Sum of the exponentials of a row of logits, each `less` so much; infinite where one overflows."""
        return self._exp_sum(logits, less)

    def new_sampler(self, *, temperature: float, top_p: float, top_k: int, seed: int) -> Sampler:
        """A way to choose, with random numbers of its own. `temperature` must not be 0."""
        api, handles = self._api, self._handles
        handles.open_context()
        chain = api.llama_sampler_chain_init(api.llama_sampler_chain_default_params())
        number = handles.add_sampler(chain)
        for part in (
            api.llama_sampler_init_top_k(top_k),
            api.llama_sampler_init_top_p(top_p, 1),
            api.llama_sampler_init_temp(temperature),
            api.llama_sampler_init_dist(seed),
        ):
            api.llama_sampler_chain_add(chain, part)
        return Sampler(handles, number)

    def sample(self, sampler: Sampler, index: int = -1) -> int:
        """Sample after the token at `index` of the last batch, from its logits as they now stand."""
        self.logits(index)  # llama.cpp aborts the process where there are none
        return int(self._api.llama_sampler_sample(sampler.chain, self._handles.open_context(), index))

    def keep(self, sequence: int, n: int) -> None:
        """Forget all but the first `n` tokens of a sequence."""
        self._api.llama_memory_seq_rm(self._memory(), self._checked(sequence), n, -1)

    def copy(self, source: int, target: int, n: int) -> None:
        """Let `target`, which is empty, share the first `n` cells of `source`. Takes microseconds."""
        if n:
            self._api.llama_memory_seq_cp(self._memory(), self._checked(source), self._checked(target), 0, n)

    def length(self, sequence: int) -> int:
        """Tokens that a sequence holds."""
        return int(self._api.llama_memory_seq_pos_max(self._memory(), self._checked(sequence))) + 1

    def _checked(self, sequence: int) -> int:
        if not 0 <= sequence < self.sequences:  # -1 would mean all of them
            raise ValueError("this branch is closed" if sequence < 0 else f"there is no sequence {sequence}")
        return sequence

    def _memory(self) -> Any:
        return self._api.llama_get_memory(self._handles.open_context())

    def _load_adapter(self, path: Path, lora: Path) -> Any:
        self._library.forget_errors()
        adapter = self._api.llama_adapter_lora_init(self._handles.model, os.fsencode(lora))
        if not adapter:
            raise self._adapter_error(path, lora)
        return adapter

    def _set_adapter(self, path: Path, lora: Path) -> None:
        one = (self._api.llama_adapter_lora_p_ctypes * 1)(self._handles.adapter)
        self._library.forget_errors()
        if self._api.llama_set_adapters_lora(self._handles.context, one, 1, (ctypes.c_float * 1)(1.0)):
            raise self._adapter_error(path, lora)

    def _adapter_error(self, path: Path, lora: Path) -> ModelError:
        reason = self._library.complaint("no reason was given")
        return ModelError(
            f"{lora}: llama.cpp cannot use it with {path}: {reason}: name the model that the adapter was "
            "trained on"
        )

    def _open_context(
        self, path: Path, threads: int, kv_type: KvType, rows: tuple[int, int], cells: int, *, on_gpu: bool
    ) -> Any:
        api = self._api
        params = api.llama_context_default_params()
        missing = [
            name for name in ("n_outputs_max", "kv_unified", "flash_attn_type") if not hasattr(params, name)
        ]
        if missing:
            raise ModelError(
                f"this llama-cpp-python lacks {', '.join(missing)}: install the version that sr-edge asks for"
            )
        params.n_ctx = cells
        params.n_batch = BATCH
        params.n_ubatch = 512 if on_gpu else 256
        params.n_seq_max, params.n_outputs_max = rows  # 32 outputs of 152,000: 10 MB, a batch of them: 300
        params.kv_unified = True  # else a fork copies, and each sequence has a fourth of the context
        params.n_threads = params.n_threads_batch = threads
        params.no_perf = True
        params.type_k = params.type_v = {
            "f32": api.GGML_TYPE_F32,
            "f16": api.GGML_TYPE_F16,
            "q8_0": api.GGML_TYPE_Q8_0,
        }[kv_type]
        if kv_type == "q8_0":
            params.flash_attn_type = api.LLAMA_FLASH_ATTN_TYPE_ENABLED  # a quantised V cache needs it
        elif kv_type == "f32" or not on_gpu:
            # Without it the same ids give the same logits, however they were batched. With it they differ by
            # up to 0.15 on a CPU, for nothing: no faster up to 3,000 tokens on x86, and five times slower on
            # Arm (https://github.com/ggml-org/llama.cpp/issues/27086).
            params.flash_attn_type = api.LLAMA_FLASH_ATTN_TYPE_DISABLED
        self._library.forget_errors()
        self.layout = f"{kv_type}, flash attention {params.flash_attn_type}"
        context = api.llama_init_from_model(self._handles.model, params)
        if not context:
            reason = self._library.complaint("no reason was given")
            raise ModelError(f"{path}: no context of {cells} tokens can be opened: {reason}: ask for less")
        return context

    # --- a sequence in a file -------------------------------------------------------------------------

    @property
    def engine(self) -> str:
        """Which llama.cpp wrote the cells: their form on disk changes between versions."""
        package = Path(str(self._api.__file__)).with_name("__init__.py")
        stated = _VERSION.search(package.read_text("utf-8"))  # `importlib.metadata` takes 0.03 s for it
        if stated is None:
            from importlib.metadata import version

            return f"llama-cpp-python {version('llama-cpp-python')}"
        return f"llama-cpp-python {stated[1]}"

    def sequence_bytes(self, sequence: int) -> int:
        """What `save_sequence` will write, but for a few."""
        return int(self._api.llama_state_seq_get_size(self._handles.open_context(), self._checked(sequence)))

    def save_sequence(self, sequence: int, ids: Sequence[int], path: Path) -> None:
        """Write the cells of a sequence, and the ids that they are for, into a file that exists.

        Raises: GenerationError: it could not be written; part of it may have been.
        """
        tokens = (self._api.llama_token * len(ids))(*ids)
        self._library.forget_errors()
        if not self._api.llama_state_seq_save_file(
            self._handles.open_context(), os.fsencode(path), self._checked(sequence), tokens, len(ids)
        ):
            reason = self._library.complaint("no reason was given")
            raise GenerationError(f"{path}: llama.cpp could not write it: {reason}")

    def load_sequence(self, sequence: int, path: Path, size: int) -> list[int]:
        """Replace what a sequence holds by the first `size` bytes of a file. Returns the ids.

        llama.cpp trusts the file: nobody else may have written it.

        Raises: GenerationError: it does not fit. The cells are then in disorder: `clear` them.
        """
        tokens = (self._api.llama_token * self.context_size)()
        n = ctypes.c_size_t(0)
        self._library.forget_errors()
        read = self._api.llama_state_seq_load_file(
            self._handles.open_context(),
            os.fsencode(path),
            self._checked(sequence),
            tokens,
            len(tokens),
            ctypes.byref(n),
        )
        if not read:
            reason = self._library.complaint("no reason was given")
            raise GenerationError(f"{path}: llama.cpp could not read it: {reason}")
        if read != size or self.length(sequence) != n.value:
            raise GenerationError(f"{path}: the file holds other cells than it says")
        return list(tokens[: n.value])

    def copy_out(self, sequence: int) -> ctypes.Array[ctypes.c_uint8]:
        """What a sequence's cells hold, for `copy_in`.

        Raises: GenerationError: it cannot be had.
        """
        size = self.sequence_bytes(sequence)
        data = (ctypes.c_uint8 * size)()
        if not self._api.llama_state_seq_get_data(self._handles.open_context(), data, size, sequence):
            raise GenerationError("llama.cpp does not give a conversation's cells away")
        return data

    def copy_in(self, sequence: int, data: ctypes.Array[ctypes.c_uint8]) -> None:
        """Fill a sequence that is empty.

        Raises: GenerationError: there is no room, or something else is wrong: it is empty as before.
        """
        context = self._handles.open_context()
        if not self._api.llama_state_seq_set_data(context, data, len(data), self._checked(sequence)):
            self.keep(sequence, 0)
            raise GenerationError("a conversation's cells cannot be had back")

    def clear(self) -> None:
        """Forget what all sequences hold, and overwrite it."""
        self._api.llama_memory_clear(self._memory(), True)


def _load_model(
    library: Library,
    path: Path,
    *,
    gpu_layers: int = 0,
    vocabulary_only: bool = False,
    cpu_tensors: Sequence[Tensor] = (),
    progress: Callable[[float], None] | None = None,
) -> Any:
    """Args:
    cpu_tensors: those of the file, if the processor computes with them.
    """
    api = library.api
    raised: list[BaseException] = []

    def report(done: float, _: object) -> bool:
        # Ctrl-C arrives here too, while llama.cpp reads; no exception can pass through it.
        try:
            if progress is not None:
                progress(done)
        except BaseException as error:
            raised.append(error)
        return not raised

    params = api.llama_model_default_params()
    params.n_gpu_layers = gpu_layers
    params.vocab_only = vocabulary_only
    params.use_extra_bufts = not has_amx(library.system_info)
    if (
        params.use_extra_bufts
        and repackable(cpu_tensors, library.system_info)
        and hasattr(params, "load_mode")
    ):
        params.load_mode = api.LLAMA_LOAD_MODE_NONE  # mapped, the file would lie in memory beside them
    params.progress_callback = callback = api.llama_progress_callback(report)
    library.forget_errors()
    model = api.llama_model_load_from_file(os.fsencode(path), params)
    del callback  # it had to live until here
    if raised:
        if model:
            api.llama_model_free(model)
        raise raised[0]
    if not model:
        reason = library.complaint("no reason was given")
        raise ModelError(f"{path}: llama.cpp cannot load it: {reason}: get another file of the model")
    return model


def _stamp(file: Path) -> int:
    """Its time of change, in nanoseconds; 0 if there is no such file, which llama.cpp complains about."""
    return file.stat().st_mtime_ns if file.exists() else 0


def _unless_closed(handle: Any) -> Any:
    if handle is None:
        raise ValueError("the model is closed")
    return handle


class _StopFlag:
    """Bytes that llama.cpp looks at between two steps of its graph, some hundred times for each token.

    A function of ours would need the interpreter each time, and slow down every token. The C library has one
    that does: `atoi` reads a number, and any but 0 stops. Its first digit is the user's, its second the
    watchdog's, so that neither undoes what the other said, on whichever thread. llama.cpp takes the number
    for a `bool`, of which some compilers look at the lowest bit only: it is odd where it is not 0.
    """

    def __init__(self, api: ModuleType) -> None:
        self._api = api
        self._text = ctypes.create_string_buffer(b"0 ")
        read_flag = ctypes.CDLL("msvcrt" if os.name == "nt" else None).atoi
        self._read_flag = ctypes.cast(read_flag, api.ggml_abort_callback)

    def attach(self, context: Any) -> None:
        """The flag must live as long as the context."""
        self._api.llama_set_abort_callback(context, self._read_flag, ctypes.cast(self._text, ctypes.c_void_p))

    @property
    def is_set(self) -> bool:
        """By the user."""
        return self._text[0] == b"1"

    @is_set.setter
    def is_set(self, value: bool) -> None:
        self._text[0] = b"1" if value else b"0"

    def alarm(self) -> None:
        self._text[1] = b"1"

    def end_alarm(self) -> None:
        self._text[1] = b" "


_EXPONENTIALS = 1 << 15
"""So many at a time: no one reads them, and written over they stay in the CPU's nearest caches."""


class _ExpSum:
    """Sums exponentials over a row of logits.

    NumPy needs two passes and twice the time of the loop that llama.cpp has for its own softmax. That one is
    exported, but no part of an interface: it is used where it gives what it should.
    """

    def __init__(self, api: ModuleType, size: int) -> None:
        self._size = size
        self._exponentials = np.empty(min(size, _EXPONENTIALS), np.float32)
        self._address = self._exponentials.ctypes.data
        self._native = self._find(api)

    def __call__(self, logits: NDArray[np.float32], less: float) -> float:
        if self._native is not None:
            return self._sum_native(self._native, logits.ctypes.data, less)
        total = 0.0
        for start in range(0, self._size, _EXPONENTIALS):
            part = logits[start : start + _EXPONENTIALS]
            out = self._exponentials[: len(part)]
            with np.errstate(over="ignore"):
                np.exp(part - np.float32(less) if less else part, out=out)
            total += float(np.einsum("i->", out))  # three times as fast as sum()
        return total

    def _sum_native(self, native: Any, address: int, less: float) -> float:
        total, left = 0.0, self._size
        while left > 0:
            total += native(min(left, _EXPONENTIALS), self._address, address, less)
            address += 4 * _EXPONENTIALS
            left -= _EXPONENTIALS
        return total

    def _find(self, api: ModuleType) -> Any:
        try:
            native = api._lib["ggml_vec_soft_max_f32"]
        except AttributeError:  # a library that hides what no header names
            return None
        native.restype = ctypes.c_double
        native.argtypes = (ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_float)
        # No shorter than a row, so that the loop for whole registers and the one for the rest are tried.
        row = np.linspace(-30, 10, self._size, dtype=np.float32)
        found = self._sum_native(native, row.ctypes.data, 1.0)
        expected = float(np.exp(row.astype(np.float64) - 1).sum())
        return native if abs(found - expected) < 1e-4 * expected else None


class _Batch:
    """One `llama_batch`, filled anew for each call."""

    def __init__(self, api: ModuleType, sequences: int) -> None:
        self._tokens = (ctypes.c_int32 * BATCH)()
        self._positions = (ctypes.c_int32 * BATCH)()
        self._outputs = (ctypes.c_int8 * BATCH)()
        self._sequences = (ctypes.c_int32 * sequences)(*range(sequences))
        width = ctypes.sizeof(ctypes.c_int32)
        self._sequence_at = [
            ctypes.pointer(ctypes.c_int32.from_buffer(self._sequences, n * width)) for n in range(sequences)
        ]
        one = (ctypes.c_int32 * BATCH)(*[1] * BATCH)
        self._pointers = (ctypes.POINTER(ctypes.c_int32) * BATCH)(*[self._sequence_at[0]] * BATCH)
        self._of_row = [0] * BATCH  # the sequence that each pointer names
        self._kept = one
        self._batch = api.llama_batch(
            0, self._tokens, None, self._positions, one, self._pointers, self._outputs
        )

    def fill(
        self,
        ids: Sequence[int],
        sequence: int,
        position: int,
        outputs: Sequence[int],
        riders: Sequence[Rider],
    ) -> Any:
        end = self._put(0, ids, sequence, position)
        for n in outputs:
            self._outputs[n] = 1
        for rider in riders:
            end = self._put(end, rider.ids, rider.sequence, rider.position)
            self._outputs[end - 1] = 1
        self._batch.n_tokens = end
        return self._batch

    def _put(self, start: int, ids: Sequence[int], sequence: int, position: int) -> int:
        end = start + len(ids)
        self._tokens[start:end] = [*ids]
        self._positions[start:end] = [*range(position, position + len(ids))]
        self._outputs[start:end] = [*bytes(len(ids))]
        for row in range(start, end):
            if self._of_row[row] != sequence:
                self._pointers[row] = self._sequence_at[sequence]
                self._of_row[row] = sequence
        return end
