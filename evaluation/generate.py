"""Responses of a model to prompts: python -m evaluation.generate --model DIR --prompts FILE --out responses.jsonl

--prompts is a JSONL, JSON, Parquet or CSV file, a folder or a name on the hub: prompts alone (plain or messages), or
any rows that the trainer reads. A response follows from model, settings, seed, prompt and sample number alone, so
neither batch size nor order nor a stop in between changes it (but for rounding: see evaluation/generating.py). What
--out holds already is kept, and refused where it is of another model or of other settings.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import fcntl
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from tqdm import tqdm

from evaluation import responses
from evaluation.checkpoint import DTYPES
from evaluation.generating import Engine, Generated, HFEngine, Request
from evaluation.plan import ENGINES, Plan, make_plan
from evaluation.prompts import anchor_row, answer_of
from evaluation.responses import Response
from evaluation.sampling import PRESETS, Sampling
from evaluation.vllm_generating import VLLMEngine


def main(argv: Sequence[str] | None = None) -> int:
    args = _arguments(argv)
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(_only_writer(_outputs(args)))
            plan = make_plan(args)
        except (ValueError, TypeError, OSError, ImportError) as error:
            print(f"evaluation.generate: {error}", file=sys.stderr)
            return 2
        try:
            run(plan)
        except torch.OutOfMemoryError as error:
            print(f"evaluation.generate: {error}; a smaller --batch-size goes on from here", file=sys.stderr)
            return 1
        except KeyboardInterrupt:
            print(f"\nstopped; the same command goes on from what {args.out} has", file=sys.stderr)
            return 130
    return 0


def run(plan: Plan) -> None:
    missing = plan.missing
    there = len(plan.requests) - len(missing)
    if there:
        print(f"{plan.out}: {there} of {len(plan.requests)} responses are there")
    made = dict(plan.kept)
    if missing:
        engine = _load(plan)
        with tqdm(total=len(plan.requests), initial=there, unit="response", disable=None) as bar:
            for at in range(0, len(missing), plan.batch_size):
                batch = missing[at : at + plan.batch_size]
                rows = [_response(plan, *one) for one in zip(batch, engine(batch), strict=True)]
                responses.append(plan.out, rows)
                made |= {row.key: row for row in rows}
                bar.update(len(rows))
    _finish(plan, made)


def _load(plan: Plan) -> Engine:
    if plan.engine == "vllm":
        return VLLMEngine(plan.checkpoint, plan.sampling, plan.seed)
    return HFEngine(plan.checkpoint, plan.sampling, plan.device)


def _response(plan: Plan, request: Request, made: Generated) -> Response:
    return Response(
        prompt=request.prompt.content, response=plan.codec.text(request.prompt, request.ids, made.ids),
        prompt_id=request.prompt.id, sample=request.sample, model=plan.checkpoint.path, seed=plan.seed,
        finish=made.finish, tokens=len(made.ids), sampling=plan.settings,
    )  # fmt: skip


def _finish(plan: Plan, made: dict[tuple[str, int], Response]) -> None:
    """The file in the order of the prompts, whatever order it was generated in; then the others."""
    wanted = [made[request.prompt.id, request.sample] for request in plan.requests]
    asked = {row.key for row in wanted}
    others = [row for key, row in made.items() if key not in asked]
    responses.write(plan.out, [*wanted, *others])
    cut = sum(row.finish == "length" for row in wanted)
    print(f"{plan.out}: {len(wanted)} responses to {len(plan.prompts)} prompts, {cut} cut at max_tokens")
    if others:
        print(f"{plan.out}: {len(others)} responses of other prompts or samples stay")
    if plan.anchors is not None:
        _write_anchors(plan, plan.anchors, wanted)
    if plan.answers is not None:
        own = (Response(prompt=p.content, response=answer_of(p), prompt_id=p.id, model="data") for p in plan.prompts)
        responses.write(plan.answers, own)
        print(f"{plan.answers}: {len(plan.prompts)} answers of the data")


def _write_anchors(plan: Plan, path: Path, wanted: Sequence[Response]) -> None:
    """And what makes them other than samples of the model, of which the trainer would say nothing."""
    by_id = {prompt.id: prompt for prompt in plan.prompts}
    responses.write_rows(path, (anchor_row(by_id[row.prompt_id], row.response) for row in wanted))
    print(f"{path}: {len(wanted)} anchors")
    if plan.sampling.changed:
        print(f"  no samples of the model itself, which the loss wants: {', '.join(plan.sampling.changed)}")
    cut = sum(row.finish == "length" for row in wanted)
    if cut:
        print(f"  {cut} of them were cut; the trainer ends them with eos unless its max_length cuts them as well")
    other = sum(plan.codec.count(row.response) != row.tokens for row in wanted)
    if other:
        print(f"  {other} of them are another number of tokens when their text is tokenised")


def _outputs(args: argparse.Namespace) -> Path:
    """-> --out; no output may be another one or the prompts."""
    paths = [path.resolve() for path in (args.out, args.anchors, args.answers, Path(args.prompts)) if path is not None]
    if len(set(paths)) < len(paths):
        raise ValueError("--out, --anchors, --answers, --prompts: want different files, got one twice")
    for path in (args.out, args.anchors, args.answers):
        if path is not None:
            if path.is_dir():
                raise ValueError(f"want a file to write, got the folder {path}")
            path.parent.mkdir(parents=True, exist_ok=True)
    return args.out


@contextlib.contextmanager
def _only_writer(out: Path) -> Iterator[None]:
    """Until this process ends, however it does. A file that is made here and stays empty goes again."""
    with out.open("ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(
                f"--out: want a file that nobody writes, got {out}, which another run is writing"
            ) from None
        try:
            yield
        finally:
            if out.exists() and not out.stat().st_size:
                out.unlink()


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        "python -m evaluation.generate", description=__doc__, allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    add = parser.add_argument
    add("--model", required=True, help="a folder or a name on the hub")
    add("--revision", help="of the model on the hub")
    add("--trust-remote-code", action="store_true", help="run code that comes with the model")
    add("--dtype", choices=DTYPES, default="auto", help="auto: the checkpoint's")
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    add("--engine", choices=ENGINES, default="hf")
    add("--batch-size", type=int, help="responses between two writes, with hf all at once; default 16, with vllm 1024")
    add("--prompts", required=True, help="a file, a folder or a name on the hub")
    add("--split", default="train")
    add("--subset", help="the hub's configuration")
    add("--prompts-revision", help="of the prompts on the hub")
    add("--limit", type=int, help="only the first rows")
    add("--chat", action="store_true", help="a plain prompt is the user's message")
    add("--chat-template", help="a file or a template, in place of the tokenizer's")
    add("--chat-template-args", default="{}", help="JSON of names that the template reads")
    add("--out", type=Path, required=True)
    add("--anchors", type=Path, help="also written: what the trainer reads as anchor_data")
    add("--answers", type=Path, help="also written: the data's own (of pairs chosen) answers, to be judged against")
    add("--seed", type=int, default=0)
    add("--preset", choices=tuple(PRESETS), help="the paper's settings; each can be given on its own as well")
    for field in dataclasses.fields(Sampling):
        kind = type(field.default)
        add(f"--{field.name.replace('_', '-')}", type=kind, help=f"default {field.default}, or the preset's")
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())
