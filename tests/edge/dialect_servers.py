"""Small servers, one for each documented way to continue an unfinished message. What the real one refuses or
misreads, they refuse or misread.

`SERVERS[name].answer(path, body)` needs no network; `with served(name) as url` serves the same over HTTP.
Behind all of them sits the same mind. It knows one text by heart, and the alphabet, and it reads nothing but
the prompt that the server's chat template makes of the request: an unfinished message that it recognises
there it goes on with, word for word. Anything else is to it a new turn: it begins the text again, with a
preamble.
"""

import contextlib
import json
import re
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

QUESTION = "A train has 12 wagons with 35 seats each. How many people find a seat?"
THOUGHT = (
    "Okay, each wagon has 35 seats, and there are 12 of them.\n\n"
    "So I need 12 * 35. Let me split it: 10 * 35 = 350, and 2 * 35 = 70.\n"
    "Together that is 350 + 70 = 420.\n\nIs that plausible? 400 would be 12 * 33.3, so yes, it is."
)
TEXT = (
    "Each of the 12 wagons has 35 seats.\n\n"
    "**Multiplication:** $12 \\cdot 35 = 10 \\cdot 35 + 2 \\cdot 35$\n\n"
    "- ten wagons: 350 seats\n- two wagons: 70 seats\n\n"
    "So the train has $350 + 70 = 420$ seats, and 420 people find one."
)
ALPHABET = "Here it goes: a b c d e f g h i j k l m n o p q r s t u v w x y z"
OWN_THOUGHT = "The user seems to want something. Let me think about what it is."


# --- the mind -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Said:
    """What the model generates after a prompt: perhaps the rest of a thought, then text."""

    reasoning: str
    text: str
    leaves_thought: bool = False
    """The prompt ended inside a think block, so that an end tag comes in between."""

    @property
    def raw(self):
        return f"{self.reasoning}\n</think>\n\n{self.text}" if self.leaves_thought else self.text


class Mind:
    def __init__(self, *, thinks, manner="plain"):
        """Args:
        thinks: a new turn begins with a thought of its own.
        manner: how it goes on where a user turn asks for that.
        """
        self.thinks = thinks
        self.manner = manner

    def generate(self, prompt):
        head, _, partial = prompt.rpartition("<|assistant|>")
        asked = head.rpartition("<|user|>")[2].partition("<|end|>")[0]
        thought, text = (ALPHABET, ALPHABET) if "alphabet" in head + partial else (THOUGHT, TEXT)
        if draft := re.search(r"<(draft[-\d]*)>\n(.*)\n</\1>", asked, re.DOTALL):
            rest = rest_of(draft[2], thought, text)
            if rest is not None and partial in ("", "<think>\n", "<think>\n\n</think>\n\n"):
                said = MANNERS[self.manner](rest, draft[2])
                opened = partial == "<think>\n"
                own = OWN_THOUGHT if opened or (self.thinks and not partial) else ""
                return Said(own, said, leaves_thought=opened)
        if partial.startswith("<think>"):
            inside = partial.removeprefix("<think>").lstrip("\n")
            if "</think>" not in inside and inside and not inside.startswith("<think>"):
                for known in (thought, text):
                    if known.startswith(inside):
                        return Said(known[len(inside) :], text, leaves_thought=True)
            after = inside.partition("</think>")[2].lstrip("\n")
            if after and "<think>" not in inside and (rest := rest_of(after, thought, text)) is not None:
                return Said("", rest)
        elif partial and (rest := rest_of(partial, thought, text)) is not None:
            return Said("", rest)
        started = partial.startswith("<think>") and "</think>" not in partial
        own = OWN_THOUGHT if started or self.thinks else ""
        start = f"Sure! Let me begin.\n\n{text.removeprefix('Here it goes: ')}"
        return Said(own, start, leaves_thought=started)


def rest_of(partial, thought, text):
    """What comes after the partial message; None if it is none that the mind knows."""
    paragraphs = [partial, *(partial[m.end() :] for m in re.finditer(r"\n\n", partial))]
    for end in paragraphs:
        for known in (text, thought):
            if end and known.startswith(end):
                return known[len(end) :]
    return None


MANNERS = {
    "plain": lambda rest, draft: rest.lstrip(),
    "spaced": lambda rest, draft: rest,
    "preamble": lambda rest, draft: f"Sure, here is the continuation:\n\n{rest.lstrip()}",
    "colon": lambda rest, draft: f"Continuing from where it breaks off: {rest.lstrip()}",
    "line": lambda rest, draft: draft.rpartition("\n")[2] + rest,
    "all": lambda rest, draft: draft + rest,
    "restart": lambda rest, draft: f"Certainly! Here's the continuation of the answer:\n\n{draft}{rest}",
    "words": lambda rest, draft: " ".join(draft.split()[-3:]) + rest,
    "ellipsis": lambda rest, draft: f"... {rest.lstrip()}",
    "fence": lambda rest, draft: f"```\n{rest.lstrip()}\n```",
    "quote": lambda rest, draft: f'Here is the rest of the answer:\n"{rest.lstrip()}"',
    "tags": lambda rest, draft: f"<draft>\n{draft}\n</draft>\n\n{rest.lstrip()}",
    "aloud": lambda rest, draft: f"<think>\n{OWN_THOUGHT}\n</think>\n\n{rest.lstrip()}",
}


# --- chat templates -----------------------------------------------------------------------------------------


def plain_template(messages, *, generates, thinking=True):
    """No model of it knows thoughts."""
    turns = "".join(f"<|{m['role']}|>{m['content']}<|end|>" for m in messages)
    return turns + ("<|assistant|>" if generates else "")


def r1_template(messages, *, generates, thinking=True):
    """Drops thoughts from earlier turns, and opens one in the next."""
    turns = [{**m, "content": m["content"].rpartition("</think>")[2]} for m in messages]
    return plain_template(turns, generates=False) + ("<|assistant|><think>\n" if generates else "")


def qwen3_template(messages, *, generates, thinking=True):
    """Puts a closed think block before the last message, an empty one if it has none."""
    turns = []
    for at, message in enumerate(messages):
        content = message["content"]
        if message["role"] == "assistant":
            thought = message.get("reasoning_content") or ""
            if not thought and "</think>" in content:
                thought, _, content = content.partition("</think>")
                thought = thought.rpartition("<think>")[2]
            if thought or at == len(messages) - 1:
                content = "<think>\n{}\n</think>\n\n{}".format(thought.strip("\n"), content.lstrip("\n"))
        turns.append({**message, "content": content})
    opening = "<|assistant|>" if thinking else "<|assistant|><think>\n\n</think>\n\n"
    return plain_template(turns, generates=False) + (opening if generates else "")


TEMPLATES = {"plain": plain_template, "r1": r1_template, "qwen3": qwen3_template}


# --- how a trailing assistant message is taken --------------------------------------------------------------


class Refused(Exception):
    def __init__(self, status, body):
        super().__init__(status)
        self.status = status
        self.body = body


def openai_error(message, status=400, param=None, code=None):
    return Refused(status, {"error": {"message": message, "type": "invalid_request_error",
                                      "param": param, "code": code}})  # fmt: skip


def new_turn(row, body):
    return row.render(body["messages"], generates=True)


def hugging_face(row, body):
    """vLLM: the rendered chat, cut off after the last message, which must be found in it."""
    flag = body.get("continue_final_message", False)
    if not isinstance(flag, bool):
        raise openai_error("[{'type': 'bool_parsing', 'loc': ('body', 'continue_final_message'), 'msg': "
                           "'Input should be a valid boolean, unable to interpret input'}]")  # fmt: skip
    if not flag:
        return row.render(body["messages"], generates=body.get("add_generation_prompt", True))
    if body.get("add_generation_prompt", True):
        raise openai_error("Cannot set both `continue_final_message` and `add_generation_prompt` to True.")
    last = body["messages"][-1]["content"].strip()
    rendered = row.render(body["messages"], generates=False)
    if last not in rendered:
        raise openai_error("continue_final_message is set but the final message does not appear in the chat "
                           "after applying the chat template!")  # fmt: skip
    return rendered[: rendered.rindex(last) + len(last)]


def appended(row, body):
    """SGLang: the text of the last message after the generation prompt."""
    if body.get("continue_final_message") and body["messages"][-1]["role"] == "assistant":
        return row.render(body["messages"][:-1], generates=True) + body["messages"][-1]["content"]
    return new_turn(row, body)


def old_llama_cpp(row, body):
    """Always continued, but for models whose thinking can be switched off and is not."""
    *before, last = body["messages"]
    if last["role"] != "assistant":
        return new_turn(row, body)
    thinking = body.get("chat_template_kwargs", {}).get("enable_thinking", True)
    if thinking and row.template == "qwen3":
        raise openai_error("Assistant response prefill is incompatible with enable_thinking.", code=400)
    return row.render(before, generates=True, thinking=thinking) + last["content"]


def new_llama_cpp(row, body):
    """`continue_final_message` may name the field that is continued."""
    *before, last = body["messages"]
    flag = body.get("continue_final_message", last["role"] == "assistant")
    if flag and body.get("add_generation_prompt", not flag):
        raise openai_error("Cannot set both add_generation_prompt and continue_final_message to true.")
    if not flag or last["role"] != "assistant":
        return new_turn(row, body)
    opened = row.render(before, generates=True).removesuffix("<think>\n")
    thought, content = last.get("reasoning_content") or "", last["content"]
    if flag == "reasoning_content" or (flag is True and thought and not content):
        return f"{opened}<think>\n{thought}"
    if row.template == "plain":
        return opened + content
    return f"{opened}<think>\n{thought}\n</think>\n\n{content}"


def llama_cpp_of_unknown_template(row, body):
    """One that it recognises no thoughts in: their field is ignored, and the text comes after the prompt."""
    if body.get("continue_final_message") and body.get("add_generation_prompt", True):
        raise openai_error("Cannot set both add_generation_prompt and continue_final_message to true.")
    return trailing(row, body)


def trailing(row, body):
    *before, last = body["messages"]
    if last["role"] != "assistant":
        return new_turn(row, body)
    return row.render(before, generates=True) + last["content"]


def anthropic(row, body):
    if body["messages"][-1]["role"] == "assistant" and body["messages"][-1]["content"].endswith((" ", "\n")):
        raise openai_error("messages: final assistant content cannot end with trailing whitespace")
    return trailing(row, body)


def refusing(row, body):
    """Anthropic since 4.6."""
    if body["messages"][-1]["role"] == "assistant":
        raise openai_error("This model does not support assistant message prefill. The conversation must end "
                           "with a user message.")  # fmt: skip
    return new_turn(row, body)


def deepseek(row, body):
    """A new turn without the mark; with it, a thought is continued in the field made for it."""
    *before, last = body["messages"]
    if not last.get("prefix"):
        return new_turn(row, body)
    opened = row.render(before, generates=True).removesuffix("<think>\n")
    thought, content = last.get("reasoning_content") or "", last["content"]
    if not thought:
        return opened + content
    return f"{opened}<think>\n{thought}" + (f"\n</think>\n\n{content}" if content else "")


def mistral(row, body):
    if body["messages"][-1]["role"] == "assistant" and not body["messages"][-1].get("prefix"):
        raise Refused(400, {"object": "error", "type": "invalid_request_error", "param": None, "message":
                            "Expected last role User or Tool (or Assistant with prefix True) for serving but "
                            "got assistant"})  # fmt: skip
    return trailing(row, body)


def marked(mark):
    def prompt(row, body):
        return trailing(row, body) if body["messages"][-1].get(mark) else new_turn(row, body)

    return prompt


# --- what is refused ----------------------------------------------------------------------------------------

KNOWN = {"model", "messages", "prompt", "stream", "max_tokens", "temperature", "top_p", "stop"}
OPENAI = {*KNOWN, "stream_options", "seed", "reasoning_effort", "max_completion_tokens"}


def extra_forbidden(*loc):
    detail = [{"type": "extra_forbidden", "loc": ["body", *loc], "msg": "Extra inputs are not permitted"}]
    return Refused(422, {"object": "error", "message": {"detail": detail}, "type": "invalid_request_error"})


def unrecognized(name):
    return openai_error(f"Unrecognized request argument supplied: {name}")


def unsupported_property(name):
    return openai_error(f"property '{name}' is unsupported")


def litellm_unsupported(name):
    return openai_error(f"litellm.UnsupportedParamsError: hosted does not support parameters: ['{name}']")


OPENAI_REASONING = {
    "max_tokens": openai_error("Unsupported parameter: 'max_tokens' is not supported with this model. Use "
                               "'max_completion_tokens' instead.", param="max_tokens"),
    "temperature": openai_error("Unsupported value: 'temperature' does not support 0 with this model. Only "
                                "the default (1) value is supported.", param="temperature"),
    "top_p": openai_error("Unsupported parameter: 'top_p' is not supported with this model.", param="top_p"),
}  # fmt: skip


# --- the table ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Server:
    name: str
    continues: object
    """The prompt that a chat request becomes."""
    template: str = "plain"
    completions: str = ""
    """`raw`; `templated`: put into a user turn; none."""
    thoughts_in: str | None = None
    """Where thoughts are told. None: in the content, with their tags."""
    thinks: bool = False
    known: frozenset = None
    """Parameters. None: what it does not know it ignores."""
    known_in_message: frozenset = None
    refuses_unknown: object = unrecognized
    refuses: dict = field(default_factory=dict)
    usage: str = "asked"
    """`asked`, `always` or `never`."""
    echoes: bool = False
    leaks: bool = False
    """Takes all that it generates for a thought, as long as there is no end tag in it."""
    manner: str = "plain"
    piece: int = 5
    """Characters of an event."""
    fingerprint: str | None = None
    """What each event is signed with."""
    signature: str | None = None
    """A header of each reply."""
    requests: list = field(default_factory=list)

    def render(self, messages, **options):
        return TEMPLATES[self.template](messages, **options)

    def answer(self, path, body):
        """Status and, for 200, the events of the stream; else a body."""
        self.requests.append((path, body))
        try:
            signed = {} if self.fingerprint is None else {"system_fingerprint": self.fingerprint}
            return 200, [signed | each for each in self._events(path, body)]
        except Refused as refused:
            return refused.status, refused.body

    def _events(self, path, body):
        if path == "/completions" and self.completions:
            is_raw = self.completions == "raw"
            wrapped = [{"role": "user", "content": body["prompt"]}]
            prompt = body["prompt"] if is_raw else self.render(wrapped, generates=True)
        elif path == "/chat/completions":
            self._check(body)
            prompt = self.continues(self, body)
        else:
            raise Refused(404, {"detail": "Not Found"})
        said = Mind(thinks=self.thinks, manner=self.manner).generate(prompt)
        limit = body.get("max_completion_tokens", body.get("max_tokens"))
        if path == "/completions":
            parts = [("text", said.raw)]
        elif self.thoughts_in is None:
            thought = f"<think>\n{said.reasoning}\n</think>\n\n" if said.reasoning else ""
            parts = [("content", said.raw if said.leaves_thought else thought + said.text)]
        elif self.leaks and not said.leaves_thought:
            parts = [(self.thoughts_in, said.text)]
        else:
            parts = [(self.thoughts_in, said.reasoning), ("content", said.text)]
        if self.echoes and body["messages"][-1]["role"] == "assistant":
            parts = [("content", body["messages"][-1]["content"]), *parts]
        yield from self._stream(parts, limit)
        if self.usage == "always" or (self.usage == "asked" and body.get("stream_options")):
            yield {"choices": [], "usage": {"prompt_tokens": 9, "completion_tokens": 9}}

    def _check(self, body):
        for name in body:
            if name in self.refuses:
                raise self.refuses[name]
            if self.known is not None and name not in self.known:
                raise self.refuses_unknown(name)
        if self.known_in_message is not None:
            for at, message in enumerate(body["messages"]):
                for name in set(message) - self.known_in_message:
                    raise extra_forbidden("messages", at, message["role"], name)

    def _stream(self, parts, limit):
        """A word is a token."""
        finish = "stop"
        for name, text in parts:
            words = re.findall(r"\s*\S+|\s+\Z", text)
            if len(words) > limit:
                words, finish = words[:limit], "length"
            limit -= len(words)
            text = "".join(words)
            for at in range(0, len(text), self.piece):
                yield event(name, text[at : at + self.piece])
        yield event(name, "", finish)


def event(name, text, finish=None):
    choice = {"text": text} if name == "text" else {"delta": {name: text}}
    return {"model": "mind", "choices": [{"index": 0, **choice, "finish_reason": finish}]}


_MESSAGE = frozenset({"role", "content"})

TABLE = [
    Server("vllm", hugging_face, "plain", "raw"),
    Server("vllm r1", hugging_face, "r1", "raw", "reasoning_content", True),
    Server("vllm without completions", hugging_face, "plain"),
    Server("vllm r1 without completions or parser", hugging_face, "r1", thinks=True),
    Server("vllm r1 with the parser of r1", hugging_face, "r1", "", "reasoning", True, leaks=True),
    Server("vllm qwen3 without completions", hugging_face, "qwen3", "", "reasoning", True),
    Server("sglang", appended, "r1", "raw", "reasoning_content", True),
    Server("sglang without completions", appended, "r1", "", "reasoning_content", True),
    Server("llama.cpp", new_llama_cpp, "r1", "raw", "reasoning_content", True),
    Server("llama.cpp without completions", new_llama_cpp, "r1", "", "reasoning_content", True),
    Server("llama.cpp qwen3 without completions", new_llama_cpp, "qwen3", "", "reasoning_content", True),
    Server("llama.cpp of an unknown template", llama_cpp_of_unknown_template, "r1"),
    Server("llama.cpp old", old_llama_cpp, "r1", "", "reasoning_content", True),
    Server("llama.cpp old qwen3", old_llama_cpp, "qwen3", "", "reasoning_content", True),
    Server("ollama", trailing, "plain", "templated", "reasoning", fingerprint="fp_ollama"),
    Server("lm studio", new_turn, "plain", "raw", usage="never"),
    Server("deepseek", deepseek, "r1", "", "reasoning_content", True, usage="always"),
    Server("mistral", mistral, "plain", "", known=frozenset(KNOWN), known_in_message=_MESSAGE | {"prefix"},
           refuses_unknown=extra_forbidden, usage="always", echoes=True),
    Server("kimi", marked("partial"), "plain"),
    Server("qwen", marked("partial"), "plain", "", "reasoning_content"),
    Server("groq", trailing, "plain", known=frozenset(OPENAI), known_in_message=_MESSAGE,
           refuses_unknown=unsupported_property,
           refuses={"reasoning_effort": openai_error("`reasoning_effort` is not supported with this model")}),
    Server("openrouter", trailing, "plain", "templated", "reasoning"),
    Server("openai", new_turn, "plain", known=frozenset(OPENAI)),
    Server("openai reasoning", new_turn, "plain", known=frozenset(OPENAI), refuses=OPENAI_REASONING,
           thoughts_in="hidden", thinks=True, manner="preamble"),
    Server("claude 4.5", anthropic, "plain", refuses={}, manner="words"),
    Server("claude 4.6", refusing, "plain", manner="colon"),
    Server("litellm", marked("prefix"), "plain", "templated", known=frozenset(OPENAI),
           refuses_unknown=litellm_unsupported, signature="x-litellm-version"),
    *(Server(f"chat, {manner}", new_turn, manner=manner) for manner in MANNERS),
    Server("chat of r1 without parser", refusing, "r1", thinks=True, manner="plain"),
    Server("chat with thoughts", refusing, "plain", "", "reasoning_content", True),
]  # fmt: skip
SERVERS = {row.name: row for row in TABLE}


# --- over HTTP ----------------------------------------------------------------------------------------------


@contextlib.contextmanager
def served(name):
    """The base URL of that server on loopback."""
    row = SERVERS[name]

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            status, said = row.answer(self.path.removeprefix("/v1"), body)
            if status == 200:
                events = [*(json.dumps(each) for each in said), "[DONE]"]
                data = "".join(f"data: {each}\n\n" for each in events).encode()
                self._reply(200, "text/event-stream", data)
            else:
                self._reply(status, "application/json", json.dumps(said).encode())

        def do_GET(self):
            self._reply(200, "application/json", json.dumps({"data": [{"id": "mind"}]}).encode())

        def _reply(self, status, kind, data):
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(data)))
            if row.signature is not None:
                self.send_header(row.signature, "1")
            self.end_headers()
            with contextlib.suppress(OSError):
                self.wfile.write(data)

        def log_message(self, *args):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        http.daemon_threads = True
        thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        thread.start()
        try:
            yield "http://{}:{}".format(*http.server_address)
        finally:
            http.shutdown()
            thread.join()
