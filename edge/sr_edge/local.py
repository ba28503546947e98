"""The small model: `LocalModel` on llama.cpp. One cursor over one KV cache, and the branches forked from it.

A sampled token is decoded with what follows it, so that opening a span or rewinding costs nothing.
Three things are kept in step here, whatever fails: the ids of a cursor, the cells that llama.cpp holds for
them, and whose logits its last call computed. How llama.cpp is called is `llama`'s business.
"""

from __future__ import annotations

import ctypes
import math
import re
import secrets
from collections import deque
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Self

import numpy as np
from numpy.typing import NDArray

from sr_edge import calibration, template
from sr_edge.adapter_header import read_adapter_header
from sr_edge.calibration import Calibration
from sr_edge.errors import (
    ContextFullError,
    GenerationError,
    MarkerError,
    ModelError,
    StoppedError,
    UsageError,
)
from sr_edge.gguf_header import Header, read_header
from sr_edge.llama import BATCH, OUTPUTS, SEQUENCES, KvType, Llama, Rider, Sampler
from sr_edge.markers import CLOSE_SPELLINGS, Markers, find_markers
from sr_edge.processor import physical_cores
from sr_edge.reuse import Part, as_written
from sr_edge.roles import NO_BIAS, Message, Prompt, Sampled, is_probed
from sr_edge.states import Origin, StateError, check_state, fingerprint, new_state
from sr_edge.vocabulary import Vocabulary

_NUM_SEEDS = 0xFFFFFFFF  # this one itself means "random" to llama.cpp
_NO_LOGITS = (-1, 0, 0)
_CLOSED = -1
_SMALL_SUM = 1e-20
"""Of exponentials: from here on what is lost to underflow does not count."""
BRANCHES = 3
"""Of each conversation that goes on at once, where there are several."""
_FEW = 16
"""Ids that are decoded with what follows them: a marker is no longer."""

_CLOSE_BEGINNINGS = {spelling[:n] for spelling in CLOSE_SPELLINGS for n in range(2, len(spelling) + 1)}
_BEGINS_CLOSE = re.compile(
    rb"[^0-9A-Za-z\x80-\xff]*(?:%s)" % b"|".join(re.escape(text.encode()) for text in _CLOSE_BEGINNINGS)
)
"""White space and punctuation, then at least two characters of a closing marker: `</`, `.</`, `</big`."""


@dataclass(frozen=True)
class SamplerSettings:
    """How tokens are chosen. The defaults are those recommended for DeepSeek-R1 and its distillations."""

    temperature: float = 0.6
    """0: always the likeliest token."""
    top_p: float = 0.95
    top_k: int = 40
    """0: no limit."""
    seed: int | None = None
    """None: another one each time."""

    def __post_init__(self) -> None:
        if not 0 <= self.temperature < math.inf:
            raise UsageError(f"temperature {self.temperature}: it must be 0 or more")
        if not 0 < self.top_p <= 1:
            raise UsageError(f"top-p {self.top_p}: it must be more than 0 and at most 1")
        if self.top_k < 0:
            raise UsageError(f"top-k {self.top_k}: it must be 0 or more")
        if self.seed is not None and not 0 <= self.seed < _NUM_SEEDS:
            raise UsageError(f"seed {self.seed}: it must be from 0 to {_NUM_SEEDS - 1}")


@dataclass(frozen=True, slots=True)
class Rendered:
    """A conversation in the model's template, tokenised stretch by stretch. See `Prompt`."""

    parts: tuple[Part, ...]
    text: str
    opening: str


class LlamaLocal:
    """See `roles.LocalModel`. Use it from one thread at a time."""

    def __init__(self, model: _Model, sequence: int, family: _Family, *, greedy: bool) -> None:
        """For `open`, `another` and `fork`."""
        self._model = model
        self._llama = model.llama
        self._sequence = sequence
        self._family = family
        self._greedy = greedy
        self._ids: list[int] = []
        self._decoded = 0  # so many of them have cells
        self._lender: LlamaLocal | None = None
        self._shared = 0  # so many cells are the lender's too
        self._logits_of = _NO_LOGITS  # the call of `decode`, the number of ids, and the row that they are
        self._origin: Origin | None = None
        self._away: _Away | None = None  # what was in cells, while it is not
        model.cursors.append(self)
        family.cursors.append(self)

    @classmethod
    def open(
        cls,
        path: Path,
        *,
        temperature: float = SamplerSettings.temperature,
        top_p: float = SamplerSettings.top_p,
        top_k: int = SamplerSettings.top_k,
        seed: int | None = None,
        n_ctx: int | None = None,
        threads: int | None = None,
        gpu_layers: int = -1,
        kv_type: KvType = "f16",
        lora: Path | None = None,
        progress: Callable[[float], None] | None = None,
        cursors: int = 1,
        contexts: int = 1,
    ) -> Self:
        """Load a model.

        Args:
            n_ctx: None for as many tokens as the model was trained for, 8192 at most.
            threads: None for one with a small model, else for the physical cores, one of four or more left
                free.
            gpu_layers: how many to put on a GPU, if there is one; -1 for all.
            lora: an adapter for this model, as a GGUF.
            progress: called with 0 to 1 while the weights are read; what it raises stops the loading.
            cursors: so many can hold a conversation of their own: see `another`.
            contexts: of so many conversations, each of `n_ctx` tokens, there are cells at once.
        Raises:
            ModelError: a file is missing or unusable.
            UsageError: a setting is out of range.
        """
        settings = SamplerSettings(temperature, top_p, top_k, seed)
        header = read_header(path)
        if lora is not None:
            read_adapter_header(lora, header)
        llama = Llama(
            path,
            context_size=n_ctx,
            threads=threads,
            gpu_layers=gpu_layers,
            kv_type=kv_type,
            lora=lora,
            tensors=header.tensors,
            progress=progress,
            sequences=SEQUENCES if cursors == 1 else cursors + BRANCHES * contexts,
            contexts=contexts,
        )
        try:
            local = cls(_Model.of(llama, header), sequence=0, family=_Family(), greedy=True)
            local.choose(settings)
            return local
        except BaseException:
            llama.close()
            raise

    @property
    def name(self) -> str:
        return self._model.name

    @property
    def metadata(self) -> Mapping[str, str]:
        """The GGUF's own, lists left out."""
        return self._model.metadata

    @property
    def markers(self) -> Markers | None:
        return self._model.markers

    @property
    def ids(self) -> Sequence[int]:
        """Live: copy it to keep it."""
        return self._ids

    @property
    def room(self) -> int:
        """Tokens that still fit; branches have their share of the cells.

        Beside other conversations each has its own context, whatever they hold.
        """
        if self._model.is_shared:
            family = self._family.cursors
            used = sum(len(one._ids) - (0 if one._lender not in family else one._shared) for one in family)
            return self._llama.context_size - used
        return self._llama.context_size - sum(len(one._ids) - one._shared for one in self._model.cursors)

    def render(self, messages: Sequence[Message]) -> Prompt:
        """The ids of an earlier answer are those that the cache has for it: see `reuse`.

        Raises:
            ModelError: the chat template is broken, or refuses these messages.
        """
        return self.prompt_of(self.rendered(messages))

    def render_anew(self, messages: Sequence[Message]) -> Prompt:
        """The same, whatever the cache holds; from any thread."""
        return self._prompt(self.rendered(messages), ())

    def prompt_of(self, rendered: Rendered) -> Prompt:
        """The prompt, as this cursor's cache has it."""
        return self._prompt(rendered, self._ids)

    def _prompt(self, rendered: Rendered, cache: Sequence[int]) -> Prompt:
        ids = as_written(rendered.parts, cache, self._model.vocabulary, self.markers)
        return Prompt(tuple(ids), rendered.text, rendered.opening)

    def rendered(self, messages: Sequence[Message]) -> Rendered:
        """What `render` needs no cache for: the same for all cursors of the model.

        Raises: ModelError: see `render`.
        """
        vocabulary = self._model.vocabulary
        bos, eos = self._model.id_under("bos_token_id"), self._model.id_under("eos_token_id")
        try:
            rendering = template.render(
                self.metadata.get("tokenizer.chat_template"),
                messages,
                bos_token="" if bos is None else vocabulary.spelling(bos),
                eos_token="" if eos is None else vocabulary.spelling(eos),
            )
        except ModelError as error:
            raise ModelError(f"{self.name}: {error}") from None
        # What the model itself wrote may hold think tags, and the template's own words control tokens.
        tokenizers = {"template": vocabulary.scaffold, "assistant": vocabulary.ordinary}
        parts = [
            Part(piece.author, tokenizers.get(piece.author, vocabulary.typed)(piece.text))
            for piece in rendering.pieces
        ]
        if vocabulary.adds_bos and bos is not None and [id for part in parts for id in part.ids][:1] != [bos]:
            parts.insert(0, Part("template", [bos]))
        return Rendered(tuple(parts), rendering.text, rendering.opening)

    def raw_prompt(self, text: str) -> Prompt:
        """A text to go on with, without a template; the control tokens in it are meant."""
        vocabulary = self._model.vocabulary
        ids = vocabulary.scaffold(text)
        bos = self._model.id_under("bos_token_id")
        if vocabulary.adds_bos and bos is not None and ids[:1] != [bos]:
            ids.insert(0, bos)
        return Prompt(tuple(ids), text, "")

    @property
    def vocabulary_size(self) -> int:
        return self._model.vocabulary.size

    def tokenize(self, text: str) -> list[int]:
        return self._model.vocabulary.ordinary(text)

    def token_count(self, text: str) -> int:
        return len(self.tokenize(text))

    def piece(self, id: int) -> bytes:
        return self._model.vocabulary.piece(id)

    def is_end(self, id: int) -> bool:
        return self._model.vocabulary.is_end(id)

    def sample(self, banned: Collection[int] = (), logit_bias: Mapping[int, float] = NO_BIAS) -> Sampled:
        """Raises:
        ContextFullError: there is no room for the token; nothing was sampled.
        StoppedError: see `stop`; nothing was sampled.
        """
        self._check_open()
        if self.room < 1:
            raise ContextFullError(_full(self._llama.context_size))
        logits = self._logits()
        before = [(self._model.vocabulary.check(id), logits[id]) for id in {*banned, *logit_bias}]
        for id, bias in logit_bias.items():
            logits[id] += bias
        for id in banned:
            logits[id] = -math.inf
        try:
            id = int(logits.argmax()) if self._greedy else self._drawn()
        finally:
            for changed, logit in before:  # they may be sampled from again, after a rewind
                logits[changed] = logit
        log_z = self._model.log_normaliser(logits)  # now, when the CPU has them in its cache
        if id in banned:
            raise GenerationError("every token is forbidden here: allow one")
        self._ids.append(id)
        return Sampled(id, float(logits[id]) - log_z)

    def entropy(self) -> float:
        """Of the next token, in nats, before temperature and truncation. The cursor does not move."""
        self._check_open()
        logits = self._logits()
        log_z = self._model.log_normaliser(logits)
        probabilities = np.exp(logits - log_z)
        return log_z - float(np.dot(probabilities, np.where(probabilities > 0, logits, 0)))

    def choose(self, settings: SamplerSettings) -> None:
        """Sample so from here on; with a seed, from random numbers that begin anew."""
        self._check_open()
        self._greedy = settings.temperature == 0
        if not self._greedy:
            seed = secrets.randbelow(_NUM_SEEDS) if settings.seed is None else settings.seed
            self._family.drop_sampler()
            self._family.sampler = self._llama.new_sampler(
                temperature=settings.temperature, top_p=settings.top_p, top_k=settings.top_k, seed=seed
            )

    def feed(self, ids: Sequence[int], *, probe: bool | Sequence[bool] = False) -> list[float]:
        """A few ids that are not probed are decoded with what follows them.

        Raises:
            ContextFullError: they do not fit; nothing was fed.
            GenerationError: llama.cpp failed; nothing was fed.
            StoppedError: see `stop`; nothing was fed.
        """
        self._check_open()
        if len(ids) > self.room:
            raise ContextFullError(
                f"{len(ids)} tokens for {self.room} places: {_full(self._llama.context_size)}"
            )
        before = len(self._ids)
        probed = [before + n for n in range(len(ids)) if is_probed(probe, n)] if probe else []
        if not probed and len(ids) <= _FEW:
            if before - self._decoded > _FEW:
                with suppress(StoppedError):  # a marker is taken even so: no cache ends inside a span
                    self._decode(before)
            self._ids += [self._model.vocabulary.check(id) for id in ids]
            return []
        self._ids += ids
        return self._decode(before, probed)

    def verify(self, draft: Sequence[int], banned: Collection[int] = ()) -> list[int]:
        """Append what greedy `sample` would choose, token after token, as far as `draft` foresees it and one
        token further, in one decode. Returns what was appended: a beginning of `draft`, and one more token.

        One decode of many tokens rounds otherwise than many of one. Where two tokens are equally likely up
        to that, `sample` may have chosen the other one.

        Args:
            draft: at most 31 ids. They cost time where they are wrong, and change nothing.
        Raises:
            ContextFullError: there is no room for the draft and one more token; nothing was appended.
            GenerationError: llama.cpp failed; nothing was appended.
            StoppedError: see `stop`; nothing was appended.
        """
        self._check_open()
        if not self._greedy:
            raise ValueError("only what is certain can be verified: the temperature must be 0")
        if len(draft) >= OUTPUTS:
            raise ValueError(f"a draft of {len(draft)} tokens; it can be {OUTPUTS - 1} at most")
        if not draft:
            return [self.sample(banned).id]
        if self.room < len(draft) + 1:
            raise ContextFullError(_full(self._llama.context_size))
        if not self._ids:
            raise ValueError("nothing to continue: feed a prompt first")
        if self._decoded == len(self._ids):
            self._drop_cells(self._decoded - 1)  # the logits after it are needed beside the others
        before, start = len(self._ids), self._decoded
        self._model.make_room(before - start + len(draft))
        last = before - 1 - start  # the row of the last id; those of the draft follow
        chosen: list[int] = []
        try:
            self._llama.decode(
                [*self._ids[start:], *draft],
                sequence=self._sequence,
                position=start,
                outputs=range(last, last + len(draft) + 1),
            )
            for drafted in (*draft, None):
                row = self._llama.logits(last + len(chosen))
                chosen.append(self._model.likeliest(row, banned))
                if chosen[-1] != drafted:
                    break
        except BaseException:
            self._drop_cells(before)
            self._decoded = min(before, self._llama.length(self._sequence))
            raise
        self._ids += chosen
        self._decoded = before + len(draft)
        self._drop_cells(len(self._ids) - 1)  # as after `sample`, the last one has no cell yet
        return chosen

    def rewind(self, n: int) -> None:
        """Keep the first `n` ids. To sample there again, at most one token is decoded again."""
        self._check_open()
        if not 0 <= n <= len(self._ids):
            raise ValueError(f"cannot keep {n} of {len(self._ids)} tokens")
        if n < self._decoded:
            self._drop_cells(n)
        if self._away is not None and n < self._away.decoded:
            self._away = None
        del self._ids[n:]

    def fork(self, n: int | None = None, *, greedy: bool = True) -> LlamaLocal:
        """A branch that shares the first `n` ids' cells. The caller closes it.

        Args:
            greedy: whether it takes the likeliest tokens; else it samples as this one does, from the same
                random numbers.
        Raises:
            GenerationError: there are three branches already.
        """
        self._check_open()
        n = len(self._ids) if n is None else n
        branch = LlamaLocal(
            self._model, self._model.free_sequence(), self._family, greedy=greedy or self._greedy
        )
        try:
            branch.borrow(self, n)
        except BaseException:
            branch.close()
            raise
        return branch

    def another(self) -> LlamaLocal:
        """A cursor for another conversation: with a context, branches and random numbers of its own.

        It chooses the likeliest tokens until `choose`. Closing the model closes it too.

        Raises:
            GenerationError: there are as many as the model was opened for.
        """
        self._check_open()
        self._model.is_shared = True
        return LlamaLocal(self._model, self._model.free_sequence(), _Family(), greedy=True)

    def borrow(self, lender: LlamaLocal, n: int) -> None:
        """Hold the first `n` ids of another cursor of the model, in the same cells. This one is empty.

        What the lender drops of them later stays here.
        """
        self._check_open()
        lender._check_open()
        if self._ids or lender._model is not self._model:
            raise ValueError("only an empty cursor of the same model can borrow")
        if not 0 <= n <= len(lender._ids):
            raise ValueError(f"cannot share {n} of {len(lender._ids)} tokens")
        self._ids, self._logits_of = lender._ids[:n], _NO_LOGITS
        if lender._away is not None:
            self._fetch(lender._away)
            return
        decoded = min(n, lender._decoded)
        self._llama.copy(lender._sequence, self._sequence, decoded)
        self._lender = lender
        self._decoded = self._shared = decoded
        self._logits_of = lender._logits_of if n >= lender._logits_of[1] else _NO_LOGITS

    def park(self) -> None:
        """Nobody uses this cursor for now: where cells are short, it is put away."""
        self._check_open()
        if self in self._model.parked:
            self._model.parked.remove(self)
        self._model.parked.append(self)

    def unpark(self) -> None:
        if self in self._model.parked:
            self._model.parked.remove(self)
        away, self._away = self._away, None
        if away is not None:
            self._fetch(away)

    def put_away(self) -> None:
        """Keep what it holds in other memory than the model's cells, until `unpark`.

        Every step of the model goes over all cells that are in use, whosever they are.
        """
        if self._decoded and self._away is None:
            try:
                away = _Away(self._llama.copy_out(self._sequence), self._decoded)
            except GenerationError:
                away = None  # it is decoded anew, should anybody want it
            self._drop_cells(0)
            self._away = away

    @property
    def bytes_away(self) -> int:
        """What it takes beside the cells."""
        return len(self._away.cells) if self._away is not None else 0

    def _fetch(self, away: _Away) -> None:
        """Into cells, as far as it is the beginning of the ids. What cannot be had is decoded anew."""
        self._model.make_room(away.decoded)
        try:
            self._llama.copy_in(self._sequence, away.cells)
        except GenerationError:
            return
        self._decoded = away.decoded
        self._drop_cells(min(away.decoded, len(self._ids)))

    def adopt(self, branch: LlamaLocal) -> None:
        """Take over all that a branch of this cursor holds; nothing is decoded again. Closes the branch."""
        self._check_open()
        branch._check_open()
        if branch._lender is not self or branch._family is not self._family:
            raise ValueError("only a branch of this cursor can be adopted")
        self._drop_cells(0)
        self._llama.copy(branch._sequence, self._sequence, branch._decoded)
        self._ids[:] = branch._ids
        self._decoded, self._logits_of = branch._decoded, branch._logits_of
        branch.close()

    def stop(self) -> None:
        """From any thread: whatever the model computes ends at once with a `StoppedError`, until `go_on`.

        The cursor is then as before the call that was stopped.
        """
        self._llama.is_stopped = True

    def go_on(self) -> None:
        """Undo `stop`."""
        self._llama.is_stopped = False

    @property
    def batch_tokens(self) -> int:
        """So many tokens are best fed at once, where they arrive one by one; 1 if it makes no difference."""
        return self._llama.batch_tokens

    def calibrate(
        self,
        folder: Path,
        *,
        say: Callable[[str], None] = lambda line: None,
        check: Callable[[], None] = lambda: None,
    ) -> Calibration | None:
        """Go by what was measured of this model on this machine; the first time, measure it: some 3 s.

        While it is empty. None where nothing depends on it, or other programs were in the way.

        Args:
            folder: where it is kept.
            say: gets a line before it is measured, and one if it cannot be kept.
            check: called between steps; what it raises ends the measuring.
        """
        self._check_open()
        llama = self._llama
        if not llama.is_on_cpu:
            return None
        try:
            model = self.origin.digest
        except StateError:  # its file is being replaced: the next time, then
            return None
        of = {"model": model, "machine": llama.machine}
        found = calibration.load(folder, of)
        if found is None and calibration.is_busy(llama.others()):
            return None
        if found is None:
            say(f"measuring once how fast {self.name} runs here")
            found = calibration.measure(
                llama.time_decode, cores=physical_cores(), others=llama.others, check=check
            )
            if found is None:
                return None
            try:
                calibration.save(folder, of, found)
            except UsageError as error:
                say(str(error))
        llama.settle(found)
        return found

    def close(self) -> None:
        """Of the model itself: its branches close with it."""
        if self._sequence == _CLOSED:
            return
        cursors = self._model.cursors
        if self is cursors[0]:
            self._llama.close()
            closing = list(cursors)
        else:
            closing = list(self._family.cursors) if self is self._family.cursors[0] else [self]
            for one in closing:
                one._drop_cells(0)
            if self is self._family.cursors[0]:
                self._family.drop_sampler()
        for one in closing:
            one._sequence = _CLOSED  # another branch may have it now
            one._away = None
            one.unpark()
            cursors.remove(one)
            one._family.cursors.remove(one)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *args: object) -> None:
        self.close()

    @property
    def origin(self) -> Origin:
        """What its cells are computed with. Raises: StateError: the model's file is not what it was."""
        if self._origin is None:
            models = tuple(fingerprint(file, changed) for file, changed in self._llama.files)
            self._origin = Origin(self._llama.engine, self._llama.layout, models)
        return self._origin

    @property
    def state_bytes(self) -> int:
        """What `save_state` will write, but for a few."""
        self._check_open()
        return self._llama.sequence_bytes(self._sequence)

    def save_state(self, path: Path) -> None:
        """Write what is decoded: the ids and their cells. `path` is replaced whole, or as it was.

        Raises: StateError
        """
        self._check_open()
        with new_state(path, self.origin) as file:
            try:
                self._llama.save_sequence(self._sequence, self._ids[: self._decoded], file)
            except GenerationError as error:
                raise StateError(str(error)) from None

    def load_state(self, path: Path) -> int:
        """Hold what `save_state` wrote, in place of all that is held now. Returns the number of ids.

        Only the model itself can, while it has no branches.

        Raises: StateError: it cannot be used. The cursor is as before, or empty if only llama.cpp saw that.
        """
        self._check_open()
        if self._model.cursors != [self]:
            raise ValueError("a state is loaded while there are branches: close them first")
        size = check_state(path, self.origin)
        self.rewind(0)
        try:
            ids = self._llama.load_sequence(self._sequence, path, size)
            for id in ids:
                self._model.vocabulary.check(id)
        except BaseException as error:  # half a state would silently corrupt what follows
            self._llama.clear()
            if isinstance(error, GenerationError | ValueError):
                raise StateError(str(error)) from None
            raise
        self._ids += ids
        self._decoded, self._logits_of = len(ids), _NO_LOGITS
        return len(ids)

    def _drawn(self) -> int:
        """At random, as the settings say."""
        assert self._family.sampler is not None, "its temperature is not 0"
        return self._llama.sample(self._family.sampler, self._logits_of[2])

    def _check_open(self) -> None:
        if self._sequence == _CLOSED:
            raise ValueError("the model, or this branch of it, is closed")

    def _logits(self) -> NDArray[np.float32]:
        """Those after our last id, in llama.cpp's own buffer."""
        if self._logits_of[:2] != (self._llama.decodes, len(self._ids)):
            if not self._ids:
                raise ValueError("nothing to continue: feed a prompt first")
            if self._decoded == len(self._ids):
                self._drop_cells(self._decoded - 1)
            self._decode(len(self._ids))
        return self._llama.logits(self._logits_of[2])

    def _decode(self, new: int, probed: Sequence[int] = ()) -> list[float]:
        """Decode the ids that have no cells yet, the new ones from index `new` on among them.

        If it fails, only the ones before `new` remain. Returns log p(close) after those at `probed`. What few
        ids the other cursors have to decode goes along with the last step.
        """
        last = len(self._ids) - 1
        wanted = deque(probed if self._model.markers else ())
        closes: list[float] = []
        riding: list[LlamaLocal] = []
        try:
            while self._decoded < len(self._ids):
                start = self._decoded
                end = min(len(self._ids), start + BATCH)
                outputs: list[int] = []
                while wanted and wanted[0] < end and len(outputs) < OUTPUTS:
                    outputs.append(wanted.popleft())
                if wanted:
                    end = min(end, wanted[0])
                elif end > last and len(outputs) == OUTPUTS and outputs[-1] < last:
                    end = last
                if end == len(self._ids):
                    riding = self._riding(BATCH - (end - start), OUTPUTS - len(outputs) - 1)
                riders = sum(len(one._ids) - one._decoded for one in riding)
                self._model.make_room(end - start + riders)
                reads = len(outputs)
                if end > last and outputs[-1:] != [last]:
                    outputs.append(last)
                self._llama.decode(
                    self._ids[start:end],
                    sequence=self._sequence,
                    position=start,
                    outputs=[n - start for n in outputs],
                    riders=[Rider(one._ids[one._decoded :], one._sequence, one._decoded) for one in riding],
                )
                self._decoded = end
                row = end - start - 1
                self._logits_of = self._llama.decodes, end, row
                for one in riding:
                    row += len(one._ids) - one._decoded
                    one._decoded = len(one._ids)
                    one._logits_of = self._llama.decodes, len(one._ids), row
                closes += [self._model.log_p_close(self._llama.logits(n - start)) for n in outputs[:reads]]
        except BaseException:  # Ctrl-C too: a cache out of step would silently corrupt what follows
            del self._ids[new:]
            for one in (self, *riding):
                keep = min(one._decoded, len(one._ids))
                one._drop_cells(keep)
                one._decoded = min(keep, self._llama.length(one._sequence))
            raise
        return closes if self._model.markers else [-math.inf] * len(probed)

    def _riding(self, tokens: int, outputs: int) -> list[LlamaLocal]:
        """Other cursors whose undecoded ids, so few and with so many outputs, go along."""
        riding = []
        for one in self._model.cursors:
            count = len(one._ids) - one._decoded
            is_awake = one not in self._model.parked
            if one is not self and is_awake and 0 < count <= min(_FEW, tokens) and outputs > 0:
                riding.append(one)
                tokens, outputs = tokens - count, outputs - 1
        return riding

    def _drop_cells(self, n: int) -> None:
        """Free the cells of all but the first `n` ids."""
        self._llama.keep(self._sequence, n)
        self._decoded = min(self._decoded, n)
        self._shared = min(self._shared, n)
        self._logits_of = _NO_LOGITS
        for one in self._model.cursors:
            if one._lender is self:
                one._shared = min(one._shared, n)


@dataclass(frozen=True, slots=True)
class _Away:
    """A copy of cells, of so many ids."""

    cells: ctypes.Array[ctypes.c_uint8]
    decoded: int


@dataclass(slots=True)
class _Family:
    """A cursor, first, and its branches: one conversation."""

    cursors: list[LlamaLocal] = field(default_factory=list)
    sampler: Sampler | None = None

    def drop_sampler(self) -> None:
        if self.sampler is not None:
            self.sampler.close()
        self.sampler = None


@dataclass(slots=True)
class _Model:
    """What all cursors share."""

    llama: Llama
    vocabulary: Vocabulary
    name: str
    metadata: Mapping[str, str]
    markers: Markers | None
    cursors: list[LlamaLocal] = field(default_factory=list)
    parked: list[LlamaLocal] = field(default_factory=list)
    """Those that may lose what they hold, in this order."""
    is_shared: bool = False
    """There are several conversations."""
    _close_ids: list[int] = field(default_factory=list)

    @classmethod
    def of(cls, llama: Llama, header: Header) -> Self:
        vocabulary, metadata = llama.vocabulary, header.texts()
        try:
            markers = find_markers(metadata, vocabulary.control_id, vocabulary.ordinary)
        except MarkerError as error:
            raise MarkerError(f"{header.path}: {error}") from None
        name = "".join(filter(str.isprintable, metadata.get("general.name", ""))) or header.path.stem
        return cls(llama, vocabulary, name, MappingProxyType(metadata), markers)

    def free_sequence(self) -> int:
        """Raises: GenerationError: there is none."""
        taken = {one._sequence for one in self.cursors}
        sequence = next((s for s in range(self.llama.sequences) if s not in taken), None)
        if sequence is None:
            raise GenerationError(f"there are {len(taken) - 1} branches already: close one")
        return sequence

    def make_room(self, tokens: int) -> None:
        """For so many, of the cells that parked cursors hold."""
        while self.used_cells() + tokens > self.llama.cells and any(one._decoded for one in self.parked):
            next(one for one in self.parked if one._decoded).put_away()

    def used_cells(self) -> int:
        return sum(one._decoded - one._shared for one in self.cursors)

    def id_under(self, key: str) -> int | None:
        """The token id in the metadata. (llama.cpp has defaults, which are right for GPT-2 only.)"""
        id = self.metadata.get(f"tokenizer.ggml.{key}", "")
        return int(id) if id.isdecimal() and int(id) < self.vocabulary.size else None

    def log_normaliser(self, logits: NDArray[np.float32]) -> float:
        """Log of the sum of their exponentials."""
        total = self.llama.exp_sum(logits)
        if _SMALL_SUM < total < math.inf:
            return math.log(total)
        highest = float(logits.max())
        if not math.isfinite(highest):
            raise GenerationError(
                "the model's probabilities are not numbers: its file is damaged, or the GPU miscalculates; "
                "get the file again, or run it on the CPU"
            )
        return highest + math.log(self.llama.exp_sum(logits, less=highest))

    def likeliest(self, logits: NDArray[np.float32], banned: Collection[int]) -> int:
        """The likeliest token that is not banned."""
        forbidden = [self.vocabulary.check(id) for id in banned]
        before = logits[forbidden]
        logits[forbidden] = -math.inf
        id = int(logits.argmax())
        highest = float(logits[id])
        logits[forbidden] = before
        if not math.isfinite(highest):
            raise GenerationError(
                "no token is allowed here, or the model's probabilities are not numbers: allow one, or get "
                "the file again"
            )
        return id

    def log_p_close(self, logits: NDArray[np.float32]) -> float:
        if not self._close_ids:
            self._close_ids.extend(self._find_close_ids())
        return float(np.logaddexp.reduce(logits[self._close_ids])) - self.log_normaliser(logits)

    def _find_close_ids(self) -> Sequence[int]:
        """The closing marker, or in text form every token that can begin one."""
        assert self.markers is not None
        if self.markers.form == "token":
            return self.markers.close_ids
        vocabulary = self.vocabulary
        candidates = {id for spelling in CLOSE_SPELLINGS for id in vocabulary.find(spelling[:2].encode())}
        ids = sorted(id for id in candidates if _BEGINS_CLOSE.fullmatch(vocabulary.piece(id)))
        return ids or self.markers.close_ids[:1]


def _full(context_size: int) -> str:
    return f"the context of {context_size} tokens is full: ask with a larger one, or start anew"
