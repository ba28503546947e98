"""The large model: whatever can continue an answer that the small one began.

`endpoint` asks an OpenAI-compatible server over HTTP. What must be known for that:

    dialects   by which convention, of those that there are      probe      which of them a server understands
    seam       what of a reply reads on (its steps in `seams`)   reply      what a reply says, read from `sse`
    failure    what a failure means                              retry      whether to ask once more
    overflow   what to leave out where there is too much         known      what was found out in earlier runs

and how it is done:

    egress     the one way out: makes `line`s, connections that can be hung up, each over a `wire`
    exchange   what a line says of a request and its reply
    server     what all requests to one endpoint share           calling    requests, one after the other
    asking     one span, on a thread that nobody waits for       errand     questions of our own
    receiving  the reply that a span comes in, as `arrivals`     hearing    the reply to such a question
    stopping   whether hanging up stops the server               deadlines  how long all of it may take
    chatting   a question and its whole reply, from any thread: no span of an answer

`served` asks our own server on this machine, and `serving` starts one as a child of ours.
`rehearsal` shows what would leave. `local_gguf` runs a second GGUF in this process and opens no socket.
Nothing is imported here: who needs no network never loads httpx.
"""
