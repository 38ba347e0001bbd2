"""A judge for tests on the loopback interface: speaks OpenAI's chat protocol, or misbehaves as it is told.

python tests/eval_server.py SECONDS: always says A after so many seconds, in a process of its own; prints its base_url.
"""

from __future__ import annotations

import asyncio
import json
import re
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from types import TracebackType

LENGTH = re.compile(rb"content-length: *(\d+)", re.IGNORECASE)
PHRASES = {200: "OK", 400: "Bad Request", 401: "Unauthorized", 429: "Too Many Requests", 500: "Internal Server Error"}


@dataclass(frozen=True, kw_only=True)
class Reply:
    text: str | None = "They are close.\nVerdict: A"
    finish: str | None = "stop"
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes | None = None  # in place of the protocol's JSON
    delay: float = 0.0
    drop: bool = False  # the connection closes in the middle of the answer
    drip: bool = False  # a byte every 50 ms, for ever


@dataclass(frozen=True)
class Asked:
    body: dict
    headers: dict[str, str]
    at: float

    @property
    def message(self) -> str:
        return self.body["messages"][-1]["content"]


Behaviour = Callable[[int, str], Reply]  # the number of the request and its message


def always(reply: Reply) -> Behaviour:
    return lambda number, message: reply


def script(*replies: Reply) -> Behaviour:
    """One after another, the last for ever."""
    return lambda number, message: replies[min(number, len(replies) - 1)]


class EvalServer:
    def __init__(self, behaviour: Behaviour) -> None:
        self.behaviour = behaviour
        self.asked: list[Asked] = []
        self.at_once = self.most_at_once = 0
        self.url = ""
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)

    def __enter__(self) -> EvalServer:
        self._thread.start()
        asyncio.run_coroutine_threadsafe(self.start(), self._loop).result(10)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)

    async def start(self) -> asyncio.Server:
        loop = asyncio.get_running_loop()
        server = await loop.create_server(lambda: _Connection(self), "127.0.0.1", 0, backlog=512)
        self.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"
        return server


class _Connection(asyncio.Protocol):
    def __init__(self, server: EvalServer) -> None:
        self._server, self._received, self._open = server, b"", False
        self._waiting = False  # for an answer

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport, self._open = transport, True

    def connection_lost(self, error: Exception | None) -> None:
        self._open = False
        self._done()

    def data_received(self, data: bytes) -> None:
        self._received += data
        head, ended, rest = self._received.partition(b"\r\n\r\n")
        found = LENGTH.search(head)
        size = int(found[1]) if found else 0
        if not ended or len(rest) < size:
            return
        self._received = rest[size:]
        lines = [line.partition(": ") for line in head.decode().split("\r\n")[1:]]
        headers = {name.lower(): value for name, _, value in lines}
        asked = Asked(json.loads(rest[:size]), headers, time.monotonic())
        server = self._server
        reply = server.behaviour(len(server.asked), asked.message)
        server.asked.append(asked)
        self._waiting = True
        server.at_once += 1
        server.most_at_once = max(server.most_at_once, server.at_once)
        asyncio.get_running_loop().call_later(reply.delay, self._answer, reply, asked)

    def _done(self) -> None:
        self._server.at_once -= self._waiting
        self._waiting = False

    def _answer(self, reply: Reply, asked: Asked) -> None:
        if not self._open:
            return
        self._done()
        body = _completion(reply, asked) if reply.body is None else reply.body
        headers = {"content-type": "application/json", "content-length": str(len(body)), **reply.headers}
        head = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        data = f"HTTP/1.1 {reply.status} {PHRASES.get(reply.status, 'Else')}\r\n{head}\r\n".encode()
        if reply.drip:
            self._transport.write(data)
            return self._drip()
        self._transport.write(data + (body[: len(body) // 2] if reply.drop else body))
        if reply.drop:
            self._transport.close()

    def _drip(self) -> None:
        if self._open:
            self._transport.write(b" ")
            asyncio.get_running_loop().call_later(0.05, self._drip)


def _completion(reply: Reply, asked: Asked) -> bytes:
    if reply.status != 200:
        return json.dumps({"error": {"message": reply.text, "code": None}}).encode()
    message = {"role": "assistant", "content": reply.text}
    content = {
        "id": "test", "object": "chat.completion", "created": 0, "model": asked.body["model"],
        "choices": [{"index": 0, "message": message, "finish_reason": reply.finish}],
        "usage": {"prompt_tokens": 100, "completion_tokens": 10, "total_tokens": 110},
    }  # fmt: skip
    return json.dumps(content).encode()


async def _alone(delay: float) -> None:
    server = EvalServer(always(Reply(delay=delay)))
    listening = await server.start()
    print(server.url, flush=True)
    async with listening:
        await listening.serve_forever()


if __name__ == "__main__":
    asyncio.run(_alone(float(sys.argv[1])))
