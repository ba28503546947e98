"""The API as an OpenAPI 3.1 document, as data. What a request may hold is what `requests` reads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias, get_args

from sr_edge import __version__
from sr_edge.events import End, Trigger
from sr_edge.serve.requests import CHAT, COMPLETION, MAX_SEED, Schema

Document: TypeAlias = dict[str, Any]

_REFUSALS: Mapping[str, str] = {
    "400": "the request cannot be meant: see `error.param` and `error.code`",
    "401": "no token, or a wrong one",
    "403": "a page of another origin asks",
    "404": "there is no such model",
    "408": "the request came too slowly",
    "413": "the body is too large",
    "415": "the body is not declared as JSON",
    "421": "the Host is none of this server's names",
    "429": "too much is asked at once: see the Retry-After header",
    "500": "the answer failed",
    "503": "the server is closing, or had no time for the answer",
}
_OF_ANY_GET = ("401", "403", "421")


def document(model_ids: Sequence[str], *, vocabulary_size: int | None = None) -> Document:
    """Args:
    model_ids: those that are served.
    vocabulary_size: of the small model, whose ids a raw prompt may be given in.
    """
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "sr-edge serve",
            "version": __version__,
            "summary": "A small local model that asks a large one for help, as OpenAI's API",
        },
        "security": [{"token": []}],
        "paths": {
            "/v1/models": {
                "get": _operation("listModels", "The models that are served", _json("ModelList"), _OF_ANY_GET)
            },
            "/v1/models/{id}": {
                "get": _operation("getModel", "One of them", _json("Model"), (*_OF_ANY_GET, "404"))
                | {"parameters": [_model_parameter(model_ids)]}
            },
            "/v1/chat/completions": {
                "post": _operation(
                    "createChatCompletion",
                    "Answer a conversation, or continue its last answer",
                    _json("ChatCompletion") | _stream("ChatCompletionChunk"),
                    tuple(_REFUSALS),
                )
                | _body("ChatRequest")
            },
            "/v1/completions": {
                "post": _operation(
                    "createCompletion",
                    "Continue a text as it stands",
                    _json("Completion") | _stream("Completion"),
                    tuple(_REFUSALS),
                )
                | _body("CompletionRequest")
            },
            "/health": {
                "get": _operation("health", "Whether the server runs", _json("Health"), ("403", "421"))
                | {"security": []}
            },
            "/metrics": {
                "get": _operation("metrics", "Counters, for Prometheus", _text("text/plain"), _OF_ANY_GET)
            },
            "/openapi.json": {
                "get": _operation(
                    "document",
                    "This document",
                    {"application/json": {"schema": {"type": "object"}}},
                    _OF_ANY_GET,
                )
            },
            "/": {
                "get": _operation("page", "A page to chat with", _text("text/html"), ("403", "421"))
                | {"security": []}
            },
        },
        "components": {
            "securitySchemes": {
                "token": {
                    "type": "http",
                    "scheme": "bearer",
                    "description": "printed by `sr-edge serve --print-token`",
                }
            },
            "schemas": _requests(model_ids, vocabulary_size) | _replies(),
        },
    }


def _operation(id: str, summary: str, content: Document, refusals: Sequence[str]) -> Document:
    responses: Document = {"200": {"description": summary, "content": content}}
    for status in refusals:
        responses[status] = {"description": _REFUSALS[status], "content": _json("Error")}
    if "429" in responses:
        responses["429"]["headers"] = {
            "Retry-After": {"description": "seconds", "schema": {"type": "integer", "minimum": 0}}
        }
    responses["default"] = {"description": "any other refusal", "content": _json("Error")}
    return {"operationId": id, "summary": summary, "responses": responses}


def _json(schema: str) -> Document:
    return {"application/json": {"schema": _ref(schema)}}


def _text(media_type: str) -> Document:
    return {media_type: {"schema": {"type": "string"}}}


def _stream(schema: str) -> Document:
    """Until OpenAPI 3.2 the schema of a stream is that of each event."""
    data = {
        "type": "string",
        "anyOf": [
            {"const": "[DONE]"},
            {
                "contentMediaType": "application/json",
                "contentSchema": {"anyOf": [_ref(schema), _ref("Error")]},
            },
        ],
    }
    return {
        "text/event-stream": {
            "schema": {
                "type": "object",
                "description": f"with `stream`: an event for each {schema}, at last one with the data "
                "`[DONE]`. An answer that breaks off ends with an Error instead.",
                "properties": {"data": data},
                "required": ["data"],
            }
        }
    }


def _body(schema: str) -> Document:
    return {"requestBody": {"required": True, "content": _json(schema)}}


def _model_parameter(model_ids: Sequence[str]) -> Document:
    return {
        "name": "id",
        "in": "path",
        "required": True,
        "schema": {"type": "string", "examples": list(model_ids)},
    }


def _ref(name: str) -> Schema:
    return {"$ref": f"#/components/schemas/{name}"}


# --- what is asked ------------------------------------------------------------------------------------


def _requests(model_ids: Sequence[str], vocabulary_size: int | None) -> Document:
    chat, completion = CHAT.schema(), COMPLETION.schema()
    if vocabulary_size is not None:
        _, ids, _, several = completion["properties"]["prompt"]["anyOf"]
        for items in (ids["items"], several["items"]["items"]):
            items["maximum"] = vocabulary_size - 1
    text, _, texts, _ = completion["properties"]["prompt"]["anyOf"]
    completion["allOf"] = [
        {
            "description": "a prompt in ids has no text to repeat",
            "if": {"properties": {"echo": {"const": True}}, "required": ["echo"]},
            "then": {"properties": {"prompt": {"anyOf": [text, texts]}}},
        }
    ]
    for schema, of_what in ((chat, ""), (completion, " of each prompt, side by side")):
        schema["properties"]["n"]["description"] = f"choices{of_what}"
        schema["properties"]["seed"]["description"] = (
            f"of the first choice; that of choice k is (seed + k) mod {MAX_SEED + 1}"
        )
        schema["properties"]["model"] = {
            "enum": [*model_ids, None],
            "description": "the first is meant where none is named; `:local` never asks the large model, "
            "`:remote` has it write everything",
        }
    said = chat["properties"]
    said["continue_final_message"]["description"] = (
        "the last message is the assistant's and is continued; the name of a field says which one"
    )
    said["add_generation_prompt"]["description"] = "the opposite of `continue_final_message`"
    is_continued = {
        "properties": {"continue_final_message": {"enum": [True, "content", "reasoning_content"]}}
    }
    chat["allOf"] = [
        {
            "description": "two names of one limit",
            "anyOf": [
                {"properties": {name: {"type": "null"}}} for name in ("max_tokens", "max_completion_tokens")
            ],
        },
        {
            "if": is_continued | {"required": ["continue_final_message"]},
            "then": {
                "properties": {"messages": {"minItems": 2}, "add_generation_prompt": {"enum": [False, None]}}
            },
            "else": {"properties": {"add_generation_prompt": {"enum": [True, None]}}},
        },
    ]
    return {"ChatRequest": chat, "CompletionRequest": completion}


# --- what is answered ---------------------------------------------------------------------------------

_COUNT: Schema = {"type": "integer", "minimum": 0}
_SECONDS: Schema = {"type": "number", "minimum": 0}
_TEXT: Schema = {"type": "string"}
_TEXT_OR_NULL: Schema = {"type": ["string", "null"]}
_SPAN_OR_NULL: Schema = {"type": ["integer", "null"], "minimum": 1}
_FINISH: Schema = {"enum": ["stop", "length"]}
_ORIGIN: Schema = {"enum": ["local", "remote"]}


def _object(required: Mapping[str, Schema], optional: Mapping[str, Schema] | None = None) -> Schema:
    return {
        "type": "object",
        "properties": {**required, **(optional or {})},
        "required": list(required),
    }


def _list(item: Schema) -> Schema:
    return {"type": "array", "items": item}


def _replies() -> Document:
    opened = _object(
        {
            "remote": _TEXT_OR_NULL,
            "trigger": {"enum": list(get_args(Trigger))},
            "sent_tokens": _COUNT,
            "sent_bytes": _COUNT,
        }
    )
    closed = _object(
        {
            "end": {"enum": list(get_args(End))},
            "tokens": _COUNT,
            "seconds": _SECONDS,
            "ttft": {"type": ["number", "null"]},
            "cost": {"type": ["number", "null"]},
            "error": _TEXT_OR_NULL,
            "remote": _TEXT_OR_NULL,
        }
    )
    written = {"span": _SPAN_OR_NULL, "origin": _ORIGIN}
    events = {"events": _list({"type": "object"})}
    marks = {"opened": opened, "closed": closed}
    segment = _object({"text": _TEXT, "part": {"enum": ["reasoning", "answer"]}, **written})
    logprob = _object(
        {
            "token": _TEXT,
            "logprob": {"type": "number"},
            "bytes": _list({"type": "integer", "minimum": 0, "maximum": 255}),
            "top_logprobs": {"type": "array", "maxItems": 0},
        }
    )
    logprobs = _object({"content": _list(logprob)})
    message = _object(
        {"role": {"const": "assistant"}, "content": _TEXT, "refusal": {"type": "null"}},
        {"reasoning_content": _TEXT},
    )
    delta = _object({}, {"role": {"const": "assistant"}, "content": _TEXT, "reasoning_content": _TEXT})
    raw_logprobs = _object({"tokens": _list(_TEXT), "token_logprobs": _list({"type": "number"})})
    return {
        "ChatCompletion": _reply(
            "chat.completion",
            _object(
                {
                    "index": _COUNT,
                    "message": message,
                    "logprobs": _nullable("ChatLogprobs"),
                    "finish_reason": _FINISH,
                    "sr_edge": _ref("Provenance"),
                }
            ),
            {"usage": _ref("Usage")},
        ),
        "ChatCompletionChunk": _reply(
            "chat.completion.chunk",
            _object(
                {"index": _COUNT, "delta": delta, "finish_reason": _or_null(_FINISH)},
                {"logprobs": _nullable("ChatLogprobs")},
            ),
            {},
            {"usage": _nullable("Usage"), "sr_edge": _ref("ChunkProvenance")},
        ),
        "Completion": _reply(
            "text_completion",
            _object(
                {
                    "index": _COUNT,
                    "text": _TEXT,
                    "logprobs": _nullable("CompletionLogprobs"),
                    "finish_reason": _or_null(_FINISH),
                },
                {"sr_edge": _ref("Provenance")},
            ),
            {},
            {"usage": _nullable("Usage"), "sr_edge": _ref("ChunkProvenance")},
        ),
        "ChatLogprobs": logprobs,
        "CompletionLogprobs": raw_logprobs,
        "Provenance": _object({"segments": _list(segment), "spans": _list(_object(written, marks))}, events)
        | {"description": "who wrote what; a span without text has no segment"},
        "ChunkProvenance": _object(written, marks | events)
        | {"description": "who wrote the chunk; an empty one says that a span has opened or closed"},
        "Usage": _usage(),
        "Model": _object(
            {"id": _TEXT, "object": {"const": "model"}, "created": {"type": "integer"}, "owned_by": _TEXT}
        ),
        "ModelList": _object({"object": {"const": "list"}, "data": _list(_ref("Model"))}),
        "Health": _object({"status": {"const": "ok"}}),
        "Error": _object(
            {
                "error": _object(
                    {"message": _TEXT, "type": _TEXT, "param": _TEXT_OR_NULL, "code": _TEXT_OR_NULL}
                )
            }
        ),
    }


def _usage() -> Schema:
    ours = _object(
        {
            "local_tokens": _COUNT,
            "remote_tokens": _COUNT,
            "share": {"type": "number", "minimum": 0, "maximum": 1},
            "spans": _COUNT,
            "cost": {"type": ["number", "null"], "minimum": 0, "description": "US dollars"},
            "seconds": _SECONDS,
        }
    )
    return _object(
        {
            "prompt_tokens": _COUNT,
            "completion_tokens": _COUNT,
            "total_tokens": _COUNT,
            "prompt_tokens_details": _object({"cached_tokens": _COUNT}),
            "completion_tokens_details": _object({"reasoning_tokens": _COUNT}),
            "sr_edge": ours,
        }
    )


def _reply(
    kind: str, choice: Schema, required: Mapping[str, Schema], optional: Mapping[str, Schema] | None = None
) -> Schema:
    shell: Mapping[str, Schema] = {
        "id": _TEXT,
        "object": {"const": kind},
        "created": {"type": "integer"},
        "model": _TEXT,
        "choices": _list(choice),
    }
    return _object({**shell, **required}, optional)


def _nullable(name: str) -> Schema:
    return {"anyOf": [_ref(name), {"type": "null"}]}


def _or_null(schema: Schema) -> Schema:
    return {"enum": [*schema["enum"], None]}
