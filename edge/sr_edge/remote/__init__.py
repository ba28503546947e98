"""The large model: whatever can continue an answer that the small one began.

`endpoint` asks an OpenAI-compatible server over HTTP: `dialect` says how, `asking` does it on a thread over a
`line` that can be hung up, `sse` and `reply` read what comes back. `local_gguf` runs a second GGUF in this
process and opens no socket. Nothing is imported here: who needs no network never loads httpx.
"""
