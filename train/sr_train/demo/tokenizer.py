"""The demo pair's tokenizer: a byte-level BPE trained on the task, with Qwen2's pre-tokenizer.

Every digit is a token of its own and every byte has one, so that any text a user types can be read.
The added tokens follow the trained entries, in the order of `ADDED_TOKENS`.
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from sr_edge.suites.demo import Problem, problem, solution_text, training_rng

END_OF_TEXT, IM_START, IM_END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
OPEN, CLOSE = "<bigmodel>", "</bigmodel>"
THINK, END_THINK = "<think>", "</think>"
CONTROL_TOKENS = (END_OF_TEXT, IM_START, IM_END, OPEN, CLOSE)
USER_TOKENS = (THINK, END_THINK)
ADDED_TOKENS = CONTROL_TOKENS + USER_TOKENS

# Source: Qwen2's tokenizer.json; llama.cpp knows it as tokenizer.ggml.pre = "qwen2".
QWEN2_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)

CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content']"
    " + '<|im_end|>' + '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n<think>\\n' }}{% endif %}"
)


@dataclass(frozen=True)
class DemoTokenizer:
    """The trained tokenizer, and the ids that the rooms around it ask for."""

    inner: Tokenizer

    @classmethod
    def load(cls, path: Path) -> "DemoTokenizer":
        return cls(Tokenizer.from_file(str(path)))

    def save(self, path: Path) -> None:
        self.inner.save(str(path))

    @property
    def num_tokens(self) -> int:
        return int(self.inner.get_vocab_size(with_added_tokens=True))

    def id(self, token: str) -> int:
        token_id = self.inner.token_to_id(token)
        assert token_id is not None, token
        return int(token_id)

    def encode(self, text: str) -> list[int]:
        return list(self.inner.encode(text, add_special_tokens=False).ids)

    def decode(self, ids: Iterable[int]) -> str:
        return str(self.inner.decode(list(ids), skip_special_tokens=False))

    def vocabulary(self) -> list[str]:
        """All entries by id, in the byte-level alphabet that GGUF stores too."""
        by_id = {index: token for token, index in self.inner.get_vocab(with_added_tokens=True).items()}
        return [by_id[index] for index in range(self.num_tokens)]

    def merges(self) -> list[str]:
        pairs = json.loads(self.inner.to_str())["model"]["merges"]
        return [pair if isinstance(pair, str) else " ".join(pair) for pair in pairs]


def train_tokenizer(seed: int, num_entries: int = 768, num_problems: int = 4_000) -> DemoTokenizer:
    """num_entries counts the added tokens too. Fewer come back if the task's words need fewer merges."""
    tokenizer = _cut_as_qwen2(models.BPE())
    trainer = trainers.BpeTrainer(
        vocab_size=num_entries - len(ADDED_TOKENS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        special_tokens=[],
        show_progress=False,
    )
    rng = training_rng(seed, "tokenizer")
    drawn = (problem(rng) for _ in range(num_problems))
    tokenizer.train_from_iterator((piece for each in drawn for piece in plain_pieces(each)), trainer)
    return _with_added(tokenizer)


def assembled_tokenizer(tokens: Sequence[str], merges: Sequence[str]) -> DemoTokenizer:
    """The tokenizer whose entries these are, by id, the added ones last: as a GGUF holds them."""
    trained = tokens[: len(tokens) - len(ADDED_TOKENS)]
    vocabulary = {token: index for index, token in enumerate(trained)}
    pairs = [(first, second) for first, _, second in (merge.partition(" ") for merge in merges)]
    return _with_added(_cut_as_qwen2(models.BPE(vocab=vocabulary, merges=pairs)))


def _cut_as_qwen2(model: models.BPE) -> Tokenizer:
    tokenizer = Tokenizer(model)
    split = pre_tokenizers.Split(Regex(QWEN2_SPLIT), behavior="isolated")
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, byte_level])
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _with_added(tokenizer: Tokenizer) -> DemoTokenizer:
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in CONTROL_TOKENS])
    tokenizer.add_tokens([AddedToken(token, special=False) for token in USER_TOKENS])
    return DemoTokenizer(tokenizer)


def prompt_text(question: str) -> str:
    """What `CHAT_TEMPLATE` renders for one question, up to where the model begins."""
    return f"{IM_START}user\n{question}{IM_END}\n{IM_START}assistant\n{THINK}\n"


def ending_text(answer: str) -> str:
    return f"{END_THINK}\n\nThe answer is \\boxed{{{answer}}}.{IM_END}"


def plain_pieces(problem: Problem) -> tuple[str, ...]:
    """The words of a problem between its special tokens, for the tokenizer to learn from."""
    answer = f"The answer is \\boxed{{{problem.answer}}}."
    return ("user\n", problem.question, "assistant\n", solution_text(problem), "\n\n", answer)
