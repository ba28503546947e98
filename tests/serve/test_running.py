"""How connections are taken."""

from __future__ import annotations

import asyncio
import socket

from sr_edge.serve.running import bind


def test_what_is_written_leaves_at_once() -> None:
    """Else a chunk waits for the acknowledgement of the one before it, which takes 40 ms."""

    async def is_prompt() -> bool:
        heard: asyncio.Future[int] = asyncio.get_running_loop().create_future()

        async def hear(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            connection = writer.get_extra_info("socket")
            heard.set_result(connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))
            writer.close()

        bound = bind("127.0.0.1", 0)
        async with await asyncio.start_server(hear, sock=bound):
            _, client = await asyncio.open_connection(*bound.getsockname())
            found = await heard
            client.close()
            await client.wait_closed()
        return bool(found)

    assert asyncio.run(is_prompt())
