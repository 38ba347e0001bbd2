"""python -m evaluation.toy_judge --truth runs/demo/truth.safetensors --port 0: a judge that knows the exact reward.

It answers POST /v1/chat/completions on the loopback interface, in OpenAI's protocol, for the language of toy/: it reads
prompt and responses from between the fences of judging/templates.py, prefers the larger reward, and says so on the last
line. Noise and a bias towards the first place are planted on request, so that statistics can be seen to find them.
--exact A B prints the win rate of model A over model B that judging without end would come to, and serves nothing.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

import torch
from torch import Tensor

from evaluation.judging.templates import Preferred
from toy.files import load_policy, read_truth
from toy.language import Language

TRUTH = Path("runs/demo/truth.safetensors")  # what make demo leaves
_MARK = re.compile(r"<<<PROMPT ([0-9a-f]{16})>>>")
_WORDS: dict[Preferred, str] = {"first": "A", "second": "B", "tie": "TIE"}


class Question(NamedTuple):
    prompt: str
    first: str
    second: str


@dataclass(frozen=True, eq=False, kw_only=True)
class ToyJudge:
    """The same question gets the same answer, whatever was asked before it."""

    language: Language
    reward: Tensor  # [X, Y]
    noise: float = 0.0  # share of verdicts that a fair coin gives, no ties among them
    position_bias: float = 0.0  # share of what is left that goes to the first response, whatever it is
    seed: int = 0

    def __post_init__(self) -> None:
        want = (len(self.language.prompts), len(self.language.responses))
        if tuple(self.reward.shape) != want or bool(self.reward.isnan().any()):
            raise ValueError(f"ToyJudge: want a reward {want} without NaN, got {tuple(self.reward.shape)}")
        for name, value in (("noise", self.noise), ("position_bias", self.position_bias)):
            if not 0.0 <= value <= 1.0:
                raise ValueError(f"ToyJudge: want {name} from 0 to 1, got {value}")

    @classmethod
    def of_file(cls, truth: Path, *, noise: float = 0.0, position_bias: float = 0.0, seed: int = 0) -> ToyJudge:
        """toy.files.write_truth's file: the reward is log pi*, which is the task's but for a constant a prompt."""
        if not truth.is_file():
            raise ValueError(f"--truth: want a file that python -m train.demo leaves, got no {truth}")
        known = read_truth(truth)
        reward = known.best[:, :-1].log()
        return cls(language=known.language, reward=reward, noise=noise, position_bias=position_bias, seed=seed)

    def reward_of(self, prompt: str, response: str) -> float:
        """-infinity for what is no response of the language. Spaces count for nothing: decoders write them."""
        if prompt not in self.language.prompts:
            raise ValueError(f"toy judge: want a prompt of {', '.join(self.language.prompts)}, got {prompt!r}")
        return self._rewards.get((prompt, "".join(response.split())), -math.inf)

    def prefer(self, question: Question) -> Preferred:
        """The truth, where neither noise nor bias came before it."""
        chance = Random(f"{self.seed} {question!r}")
        if chance.random() < self.noise:
            return "first" if chance.random() < 0.5 else "second"
        if chance.random() < self.position_bias:
            return "first"
        first, second = (self.reward_of(question.prompt, said) for said in (question.first, question.second))
        return "tie" if first == second else "first" if first > second else "second"

    def answer(self, message: str) -> str:
        """A judge's prompt -> what the judge says."""
        question = read_question(message)
        first, second = (self.reward_of(question.prompt, said) for said in (question.first, question.second))
        return f"A has reward {first:.4f}, B has {second:.4f}.\nVerdict: {_WORDS[self.prefer(question)]}"

    @cached_property
    def _rewards(self) -> dict[tuple[str, str], float]:
        rows = zip(self.language.prompts, self.reward.tolist(), strict=True)
        return {
            (prompt, word): value
            for prompt, row in rows
            for word, value in zip(self.language.responses, row, strict=True)
        }


def read_question(message: str) -> Question:
    """What stands between the fences of a filled evaluation.judging.templates.Template."""
    found = _MARK.search(message)
    if found is None:
        raise ValueError("toy judge: want a message with a fenced prompt (evaluation/judging/templates.py), got none")
    return Question(*(_between(message, label, found[1]) for label in ("PROMPT", "RESPONSE A", "RESPONSE B")))


def _between(message: str, label: str, mark: str) -> str:
    opening, closing = f"<<<{label} {mark}>>>\n", f"\n<<<END OF {label} {mark}>>>"
    _, begun, rest = message.partition(opening)
    content, ended, _ = rest.partition(closing)
    if not begun or not ended:
        raise ValueError(f"toy judge: want {opening.strip()} and {closing.strip()} in the message, got not both")
    return content


def exact_win_rate(policy: Tensor, baseline: Tensor, reward: Tensor) -> float:
    """What judging samples of two policies [X, Y + 1] comes to, a tie one half; mean over prompts. reward [X, Y]."""
    worst = torch.full_like(reward[:, :1], -math.inf)  # the last column: all that is no response
    r = torch.cat([reward, worst], 1).double()
    wins = (r[:, :, None] > r[:, None, :]).double() + 0.5 * (r[:, :, None] == r[:, None, :]).double()  # [X, Y+1, Y+1]
    return float(torch.einsum("xi,xij,xj->x", policy.double(), wins, baseline.double()).mean())


class JudgeServer(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 512  # connections that come at once

    def __init__(self, judge: ToyJudge, port: int = 0) -> None:
        super().__init__(("127.0.0.1", port), _Handler)
        self.judge = judge

    @property
    def url(self) -> str:
        """The base_url of a client."""
        return f"http://127.0.0.1:{self.server_address[1]}/v1"


@contextmanager
def serving(judge: ToyJudge, port: int = 0) -> Iterator[str]:
    """-> the base_url, while it answers in a thread of its own."""
    with JudgeServer(judge, port) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        thread.start()
        try:
            yield server.url
        finally:
            server.shutdown()
            thread.join()


class _Handler(BaseHTTPRequestHandler):
    server: JudgeServer  # the only one that makes it
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = 1 << 16  # head and body leave together

    def do_GET(self) -> None:
        if self.path != "/v1/models":
            return self._send(404, _error(f"want /v1/models, got {self.path}"))
        self._send(200, {"object": "list", "data": [{"id": "toy", "object": "model", "owned_by": "toy"}]})

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.path != "/v1/chat/completions":
            return self._send(404, _error(f"want /v1/chat/completions, got {self.path}"))
        try:
            self._send(200, _completion(self.server.judge, json.loads(body)))
        except ValueError as error:
            self._send(400, _error(str(error)))

    def _send(self, status: int, content: dict[str, Any]) -> None:
        data = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: Any) -> None:
        """Ten thousand requests are no news."""


def _completion(judge: ToyJudge, asked: Any) -> dict[str, Any]:
    """A request's JSON -> the answer's."""
    messages = asked.get("messages") if isinstance(asked, dict) else None
    if not isinstance(messages, list) or not messages or not all(isinstance(m, dict) for m in messages):
        raise ValueError("toy judge: want an object with messages, got none")
    if asked.get("stream"):
        raise ValueError("toy judge: want stream false, got true")
    message = messages[-1].get("content")
    if not isinstance(message, str):
        raise ValueError(f"toy judge: want the last message a text, got {type(message).__name__}")
    said = judge.answer(message)
    used = {"prompt_tokens": len(message.split()), "completion_tokens": len(said.split())}
    return {
        "id": "toy",
        "object": "chat.completion",
        "created": 0,
        "model": asked.get("model", "toy"),
        "choices": [{"index": 0, "message": {"role": "assistant", "content": said}, "finish_reason": "stop"}],
        "usage": {**used, "total_tokens": sum(used.values())},
    }


def _error(message: str) -> dict[str, Any]:
    return {"error": {"message": message, "type": "invalid_request_error", "param": None, "code": None}}


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        "python -m evaluation.toy_judge", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--truth", type=Path, default=TRUTH, help="the exact answer, a file of python -m train.demo")
    add("--port", type=int, default=8000, help="0: any that is free")
    add("--noise", type=float, default=0.0, help="share of verdicts that a fair coin gives")
    add("--position-bias", type=float, default=0.0, help="share of the other verdicts that go to the first response")
    add("--seed", type=int, default=0, help="of both")
    add("--exact", type=Path, nargs=2, metavar=("A", "B"), help="folders of two models")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    args = _arguments(argv)
    try:
        judge = ToyJudge.of_file(args.truth, noise=args.noise, position_bias=args.position_bias, seed=args.seed)
        if args.exact is not None:
            a, b = (load_policy(folder, judge.language).distribution for folder in args.exact)
            print(f"{exact_win_rate(a, b, judge.reward):.4f}")
            return 0
        server = JudgeServer(judge, args.port)
    except (ValueError, OSError, OverflowError) as error:
        print(f"evaluation.toy_judge: {error}", file=sys.stderr)
        return 2
    with server:
        print(server.url, flush=True)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            return 0
    return 0


if __name__ == "__main__":
    sys.exit(main())
