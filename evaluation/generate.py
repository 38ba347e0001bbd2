"""Responses of a model to prompts: python -m evaluation.generate --model DIR --prompts FILE --out responses.jsonl

--prompts is a JSONL, JSON, Parquet or CSV file, a folder or a name on the hub: prompts alone (plain or messages), or
any rows that the trainer reads. A response follows from model, settings, seed, prompt and sample number alone, so
neither batch size nor order nor a stop in between changes it (but for rounding: see generating/hf_engine.py). What
--out holds already is kept, and refused where it is of another model or of other settings.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from tqdm import tqdm

from evaluation import files, responses
from evaluation.generating.checkpoint import DTYPES
from evaluation.generating.hf_engine import Engine, Generated, HFEngine, Request
from evaluation.generating.plan import ENGINES, Plan, make_plan
from evaluation.generating.prompts import anchor_row, answer_of
from evaluation.generating.sampling import PRESETS, Sampling
from evaluation.generating.vllm_engine import VLLMEngine
from evaluation.responses import Response

HOLE = "{temperature}"


def main(argv: Sequence[str] | None = None) -> int:
    args = _arguments(argv)
    with contextlib.ExitStack() as locks:
        try:
            plans = _plans(args, locks)
            engine = _load(plans[0]) if any(plan.missing for plan in plans) else None
        except (ValueError, TypeError, OSError, ImportError) as error:
            return _told(str(error), 2)
        except KeyboardInterrupt:
            return _told("stopped before anything was generated", 130)
        try:
            for plan in plans:
                run(plan, engine)
        except torch.OutOfMemoryError as error:
            return _told(f"{error}; a smaller --batch-size goes on from here", 1)
        except OSError as error:  # a full disk, most likely
            return _told(f"{error}; the same command goes on from what {args.out} has", 1)
        except KeyboardInterrupt:
            return _told(f"stopped; the same command goes on from what {args.out} has", 130)
    return 0


def _told(message: str, code: int) -> int:
    print(f"evaluation.generate: {message}", file=sys.stderr)
    return code


def _plans(args: argparse.Namespace, locks: contextlib.ExitStack) -> list[Plan]:
    """One a temperature, every file checked and locked."""
    runs = sweep(args)
    outputs = [*(run.out for run in runs), *(path for path in (args.anchors, args.answers) if path is not None)]
    inputs = [Path(args.prompts)]
    if args.chat_template and os.path.isfile(args.chat_template):
        inputs.append(Path(args.chat_template))
    files.check_outputs(outputs, inputs)
    for path in outputs:
        path.parent.mkdir(parents=True, exist_ok=True)
    for one in runs:
        locks.enter_context(files.only_writer(one.out))
    return [make_plan(one) for one in runs]


def sweep(args: argparse.Namespace) -> list[argparse.Namespace]:
    """The command at each of --temperatures, with {temperature} filled in; without them the command itself."""
    if args.temperatures is None:
        return [args]
    names = [str(args.out).replace(HOLE, f"{temperature:g}") for temperature in args.temperatures]
    if args.temperature is not None or args.anchors is not None or args.answers is not None:
        raise ValueError("--temperatures: want it without --temperature, --anchors and --answers, got one of them")
    if HOLE not in str(args.out) or len(set(names)) < len(names):
        raise ValueError(f"--out: want {HOLE} in it and different --temperatures, got {args.out}, {args.temperatures}")
    return [
        argparse.Namespace(**{**vars(args), "temperature": temperature, "out": Path(name)})
        for temperature, name in zip(args.temperatures, names, strict=True)
    ]


def run(plan: Plan, engine: Engine | None) -> None:
    """engine: None where nothing is missing."""
    missing = plan.missing
    there = len(plan.requests) - len(missing)
    if there:
        print(f"{plan.out}: {there} of {len(plan.requests)} responses are there")
    made = dict(plan.kept)
    if missing:
        assert engine is not None, "loaded where something is missing"
        with tqdm(total=len(plan.requests), initial=there, unit="response", disable=None) as bar:
            for at in range(0, len(missing), plan.batch_size):
                batch = missing[at : at + plan.batch_size]
                rows = [_response(plan, *one) for one in zip(batch, engine(batch, plan.sampling), strict=True)]
                responses.append(plan.out, rows)
                made |= {row.key: row for row in rows}
                bar.update(len(rows))
    _finish(plan, made)


def _load(plan: Plan) -> Engine:
    if plan.engine == "vllm":
        return VLLMEngine(plan.checkpoint, plan.seed)
    return HFEngine(plan.checkpoint, plan.device)


def _response(plan: Plan, request: Request, made: Generated) -> Response:
    return Response(
        prompt=request.prompt.content, response=plan.codec.text(request.prompt, request.ids, made.ids),
        prompt_id=request.prompt.id, sample=request.sample, model=plan.checkpoint.path, seed=plan.seed,
        finish=made.finish, tokens=len(made.ids), sampling=plan.settings, tools=request.prompt.tools,
        template_args=request.prompt.template_args,
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
        own = [
            Response(
                prompt=p.content, response=answer_of(p), prompt_id=p.id, model="data", tools=p.tools,
                template_args=p.template_args,
            )
            for p in plan.prompts
        ]  # fmt: skip
        responses.write(plan.answers, own)
        print(f"{plan.answers}: {len(plan.prompts)} answers of the data")


def _write_anchors(plan: Plan, path: Path, wanted: Sequence[Response]) -> None:
    """And what makes them other than samples of the model, of which the trainer would say nothing."""
    by_id = {prompt.id: prompt for prompt in plan.prompts}
    files.write_rows(path, (anchor_row(by_id[row.prompt_id], row.response) for row in wanted))
    print(f"{path}: {len(wanted)} anchors")
    if plan.sampling.changed:
        print(f"  no samples of the model itself, which the loss wants: {', '.join(plan.sampling.changed)}")
    cut = sum(row.finish == "length" for row in wanted)
    if cut:
        print(f"  {cut} of them were cut; the trainer ends them with eos unless its max_length cuts them as well")
    other = sum(plan.codec.count(row.response) != row.tokens for row in wanted)
    if other:
        print(f"  {other} of them are another number of tokens when their text is tokenised")


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
    add("--out", type=Path, required=True, help=f"with --temperatures {HOLE} in its name stands for each of them")
    add("--anchors", type=Path, help="also written: what the trainer reads as anchor_data")
    add("--answers", type=Path, help="also written: the data's own (of pairs chosen) answers, to be judged against")
    add("--seed", type=int, default=0)
    add("--preset", choices=tuple(PRESETS), help="the paper's settings; each can be given on its own as well")
    add("--temperatures", type=float, nargs="+", help="one after another, a file each, for a sweep")
    for field in dataclasses.fields(Sampling):
        kind = type(field.default)
        add(f"--{field.name.replace('_', '-')}", type=kind, help=f"default {field.default}, or the preset's")
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())
