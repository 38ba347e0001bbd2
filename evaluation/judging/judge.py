"""One judge that speaks the OpenAI chat protocol: asks it, waits, tries again, gives up with the reason.

The API key comes from the environment and is taken out of every text that leaves this module.
"""

from __future__ import annotations

import asyncio
import email.utils
import ipaddress
import math
import os
import random
import ssl
import time
from dataclasses import dataclass
from types import TracebackType
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import httpx2
import openai

_AGAIN = {408, 409, 425, 429}  # and every 5xx
_REFUSED = {400, 422}  # the server understood, and does not want this message
_POOL = 8  # connections of a client: for every request it looks at all of its own
_SECRET = 8  # characters; what is shorter, such as EMPTY, is a local server's dummy
LIMIT_NAMES = ("max_tokens", "max_completion_tokens")
_NUMBERS = ("max_tokens", "concurrency", "attempts", "timeout", "backoff", "longest_wait")


@dataclass(frozen=True, kw_only=True)
class JudgeSettings:
    """temperature None leaves it to the server. limit_name: under which name the protocol carries max_tokens.

    timeout: seconds for one attempt, the whole answer. backoff: seconds before the second attempt, doubled before each
    further one, up to longest_wait; a server that asks for a longer wait than that is given up.
    """

    url: str
    model: str
    temperature: float | None = 0.0
    max_tokens: int = 1024
    limit_name: str = "max_tokens"
    concurrency: int = 16
    timeout: float = 120.0
    attempts: int = 6
    backoff: float = 1.0
    longest_wait: float = 120.0

    def __post_init__(self) -> None:
        _check_url(self.url)
        if not self.model:
            raise ValueError("judge: want the name of a model, got an empty one")
        if self.limit_name not in LIMIT_NAMES:
            raise ValueError(f"judge: want limit_name one of {LIMIT_NAMES}, got {self.limit_name!r}")
        if self.temperature is not None and not 0 <= self.temperature < math.inf:
            raise ValueError(f"judge: want temperature >= 0, got {self.temperature}")
        for name in _NUMBERS:
            value = getattr(self, name)
            if not 0 < value < math.inf:
                raise ValueError(f"judge: want {name} > 0, got {value}")

    @property
    def sampling(self) -> dict[str, float | int]:
        """As it goes into a request."""
        made: dict[str, float | int] = {self.limit_name: self.max_tokens}
        return made if self.temperature is None else made | {"temperature": self.temperature}

    @property
    def local(self) -> bool:
        """Whether the URL is of this machine or a private network."""
        host = urlsplit(self.url).hostname or ""
        try:
            return ipaddress.ip_address(host).is_private
        except ValueError:
            return "." not in host or host.endswith(".local")


class Answer(NamedTuple):
    """error: why no answer came; text is empty then. finish: as the server says it; None where it does not."""

    text: str
    error: str | None = None
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    finish: str | None = None
    refused: bool = False  # the server answers, but not this message

    @property
    def cut(self) -> bool:
        """At max_tokens, so that its last line is not where it would have ended."""
        return self.finish == "length"


def _check_url(url: str) -> None:
    shown = ""
    try:
        parts = urlsplit(url)
        shown = f"{parts.scheme}://{parts.hostname}"  # the rest may hold a secret
        good = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0  # port raises where it is none
    except ValueError:
        good = False
    if not good or "@" in parts.netloc or parts.query or parts.fragment:
        raise ValueError(
            f"judge: want a URL http(s)://host[:port]/path without user, password, query or fragment, got {shown}..."
        )


def api_key(variable: str, settings: JudgeSettings) -> str | None:
    """From the environment; None for a local server without one."""
    key = os.environ.get(variable, "").strip()
    if key and (not key.isascii() or not key.isprintable() or " " in key):
        raise ValueError(f"judge: want in {variable} a key of printable ASCII without spaces, got something else")
    if not key and not settings.local:
        raise ValueError(f"judge: want an API key in the environment variable {variable}, got none")
    return key or None


class _Failure(NamedTuple):
    reason: str
    again: bool  # whether another attempt makes sense
    wait: float | None = None  # seconds that the server asks for
    refused: bool = False


class Judge:
    """Used as `async with Judge(settings, key) as judge`; any number of tasks may ask at once."""

    def __init__(self, settings: JudgeSettings, key: str | None) -> None:
        self._settings, self._key = settings, key
        self._closed_until = 0.0  # of time.monotonic: a server that asks one task to wait means all of them
        count = math.ceil(settings.concurrency / _POOL)
        secure = httpx2.create_ssl_context()  # once: it reads every certificate
        self._clients = [_client(settings, key, secure) for _ in range(count)]
        self._busy = [0] * count  # requests of each client

    async def __aenter__(self) -> Judge:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for client in self._clients:
            await client.close()

    async def ask(self, message: str) -> Answer:
        """Never raises for what the server or the network does."""
        most = self._settings.attempts
        for attempt in range(1, most + 1):
            await self._opened()
            got = await self._attempt(message)
            if isinstance(got, Answer):
                return got
            if not got.again or attempt == most:
                reason = f"{_shortened(self._clean(got.reason))} (attempt {attempt} of {most})"
                return Answer("", reason, refused=got.refused)
            await self._pause(attempt, got.wait)
        raise AssertionError("at least one attempt is made")

    async def _attempt(self, message: str) -> Answer | _Failure:
        request: dict[str, Any] = {
            "model": self._settings.model, "messages": [{"role": "user", "content": message}], **self._settings.sampling
        }  # fmt: skip
        try:
            return self._answer(await self._send(request))
        except (asyncio.TimeoutError, openai.APITimeoutError):
            return _Failure(f"no whole answer within {self._settings.timeout:g} s", again=True)
        except openai.APIStatusError as error:
            return self._refused(error)
        except openai.APIConnectionError as error:
            return _Failure(f"connection: {error.__cause__ or error!r}", again=True)
        except (openai.OpenAIError, ValueError, RecursionError) as error:  # the last of JSON that is nested too deep
            return _Failure(f"no chat completion: {error}", again=True)

    async def _send(self, request: dict[str, Any]) -> Any:
        free = self._busy.index(min(self._busy))
        self._busy[free] += 1
        try:
            # the client's timeout is for each read: a server that drips would hold us for ever
            sent = self._clients[free].chat.completions.create(**request)
            return await asyncio.wait_for(sent, self._settings.timeout)
        finally:
            self._busy[free] -= 1

    def _answer(self, completion: Any) -> Answer:
        """The client builds its objects without looking at what the server sent, so anything may be missing."""
        try:
            choice, usage = completion.choices[0], completion.usage
            text, finish = choice.message.content, getattr(choice, "finish_reason", None)
        except (AttributeError, TypeError, LookupError):
            raise ValueError(f"want choices with a message, got {completion}") from None
        if text is not None and not isinstance(text, str):
            raise ValueError(f"want a text as content, got {text}")
        return Answer(
            self._clean(text or ""), None, _count(usage, "prompt_tokens"), _count(usage, "completion_tokens"),
            self._clean(finish) if isinstance(finish, str) else None,
        )  # fmt: skip

    def _refused(self, error: openai.APIStatusError) -> _Failure:
        status = error.status_code
        reason = f"HTTP {status}: {error.response.text}"
        wait = _asked_wait(error.response.headers)
        if wait is not None and wait > self._settings.longest_wait:
            longest = f"more than {self._settings.longest_wait:g}"
            return _Failure(f"asks to wait {wait:g} s, {longest}; {reason}", again=False)
        return _Failure(reason, status in _AGAIN or status >= 500, wait, status in _REFUSED)

    async def _pause(self, attempt: int, wait: float | None) -> None:
        if wait is not None:
            self._closed_until = max(self._closed_until, time.monotonic() + wait)
            return
        longest = min(self._settings.longest_wait, self._settings.backoff * 2.0 ** (attempt - 1))
        await asyncio.sleep(longest * random.uniform(0.5, 1.0))

    async def _opened(self) -> None:
        while (left := self._closed_until - time.monotonic()) > 0:
            # not all at the same moment
            await asyncio.sleep(left + random.uniform(0.0, min(1.0, 0.1 * left)))

    def _clean(self, text: str) -> str:
        """Without the key, and without lone surrogates, which JSON can hold and no file."""
        whole = text.encode(errors="replace").decode()
        return whole.replace(self._key, "[key]") if self._key and len(self._key) >= _SECRET else whole


def _client(settings: JudgeSettings, key: str | None, secure: ssl.SSLContext) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(
        base_url=settings.url,
        api_key=key or "none",
        max_retries=0,
        timeout=settings.timeout,
        # not sent on to wherever a redirect points; a proxy of the environment does not see local servers
        http_client=openai.DefaultAsyncHttpxClient(
            verify=secure, follow_redirects=False, trust_env=not settings.local,
            limits=httpx2.Limits(max_connections=None, max_keepalive_connections=_POOL),
        ),
    )  # fmt: skip


def _count(usage: Any, name: str) -> int | None:
    value = getattr(usage, name, None)
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None


def _shortened(text: str) -> str:
    flat = " ".join(text.split())
    return flat if len(flat) <= 300 else f"{flat[:300]}..."


def _asked_wait(headers: httpx2.Headers) -> float | None:
    """Retry-After, seconds or a date; None where there is none that can be read or that lies ahead."""
    value = headers.get("retry-after")
    if value is None:
        return None
    try:
        seconds = float(value)
    except ValueError:
        try:
            seconds = email.utils.parsedate_to_datetime(value).timestamp() - time.time()
        except ValueError:
            return None
    return seconds if 0 < seconds < math.inf else None
