"""Our files as alpaca_eval's JSON, so that its package judges our responses or reads our verdicts.

    python -m evaluation.alpaca outputs responses.jsonl --generator NAME --out outputs.json
    python -m evaluation.alpaca annotations --a A.jsonl --b B.jsonl --verdicts V.jsonl --out annotations.json

Read against alpaca_eval's source (commit cd543a1, 2025-08-09). Its package, 0.6.6, was run on exported annotations:
metrics.get_winrate gives our win rate, wins, losses and draws (docs/evaluation.md). Its judges were not run.

- outputs: `alpaca_eval --model_outputs M.json --reference_outputs R.json` joins both files on `instruction`,
  so an instruction that comes twice is paired crosswise, with a warning; hence one sample of each prompt. It takes the
  model's name from `generator`. Its default metric is the length-controlled one: see below.
- annotations: `output_1` and `generator_1` are the reference (--b), `output_2` and `generator_2` the model (--a);
  `preference` is 1 where the reference won, 2 where the model did, 1.5 for a tie. Its metrics.get_winrate leaves out a
  preference of null, with a count in its log, counts our inconsistent pairs as draws, and gives each row the same
  weight: with k samples a prompt its mean is over pairs, ours over prompts.
- metrics.get_length_controlled_winrate is for its own evaluation set, in its order: it looks up the difficulty of an
  instruction by the number of its row, among 805, in a table that it downloads. Elsewhere pass it get_winrate.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from evaluation import files, responses
from evaluation.judging import verdicts
from evaluation.judging.pairing import Matched, Pair, calls, match
from evaluation.judging.verdicts import Outcome, Verdict, read_about
from evaluation.responses import Response


def model_outputs(
    given: Sequence[Response], *, generator: str, dataset: str = "", sample: int = 0
) -> list[dict[str, str]]:
    """One output an instruction: those responses whose number is `sample`, in their order."""
    chosen = [response for response in given if response.sample == sample]
    if not chosen:
        found = sorted({response.sample for response in given})
        raise ValueError(f"model_outputs: want responses with sample {sample}, got {found}")
    return [
        {
            "instruction": instruction(response),
            "output": response.response,
            "generator": generator,
            "dataset": dataset,
        }
        for response in chosen
    ]


def annotated(
    outcomes: Sequence[Outcome], pairs: Sequence[Pair], *, model: str, baseline: str, annotator: str, dataset: str = ""
) -> list[dict[str, Any]]:
    """One row an outcome, the unscored ones with a preference of null; the instruction is what our judge was shown."""
    if model == baseline:
        raise ValueError(f"annotated: want two names, got {model!r} for both: alpaca_eval would call it a draw")
    known = {(pair.prompt_id, pair.sample): pair for pair in pairs}
    absent = [(o.prompt_id, o.sample) for o in outcomes if (o.prompt_id, o.sample) not in known]
    if absent:
        raise ValueError(f"annotated: want a pair for every outcome, got none for {len(absent)}, {absent[0]} first")
    rows = []
    for outcome in outcomes:
        pair = known[outcome.prompt_id, outcome.sample]
        rows.append(
            {
                "instruction": pair.prompt,
                "output_1": pair.b,
                "generator_1": baseline,
                "dataset": dataset,
                "output_2": pair.a,
                "generator_2": model,
                "annotator": annotator,
                "preference": None if outcome.score is None else 1.0 + outcome.score,
            }
        )
    return rows


def write(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """The file's name has to end in .json: alpaca_eval goes by it."""
    if path.suffix != ".json":
        raise ValueError(f"{path}: want a name that ends in .json, got {path.suffix!r}")
    files.write_text(path, json.dumps(rows, indent=2) + "\n")


def instruction(response: Response) -> str:
    """The prompt as one text; alpaca_eval's judges have no place for a system message or for earlier turns."""
    prompt = response.prompt
    if isinstance(prompt, str):
        return prompt
    content = prompt[0].get("content") if len(prompt) == 1 and prompt[0].get("role") == "user" else None
    if not isinstance(content, str):
        roles = [message.get("role") for message in prompt]
        raise ValueError(f"prompt {response.prompt_id}: want a text or one message of the user, got {roles}")
    return content


def main(argv: Sequence[str] | None = None) -> int:
    args = _arguments(argv)
    try:
        given = [args.responses] if args.what == "outputs" else [args.a, args.b, args.verdicts]
        files.check_outputs([args.out], given)
        rows = _outputs(args) if args.what == "outputs" else _annotations(args)
        write(args.out, rows)
    except (ValueError, OSError) as error:
        print(f"evaluation.alpaca: {error}", file=sys.stderr)
        return 2
    print(f"{args.out}: {len(rows)} rows")
    return 0


def _outputs(args: argparse.Namespace) -> Sequence[Mapping[str, Any]]:
    return model_outputs(
        responses.read(args.responses), generator=args.generator, dataset=args.dataset, sample=args.sample
    )


def _annotations(args: argparse.Namespace) -> Sequence[Mapping[str, Any]]:
    judged = verdicts.read(args.verdicts)
    if not judged:
        raise ValueError(f"{args.verdicts}: want verdicts, got an empty file")
    matched = match(responses.read(args.a), responses.read(args.b))
    pairs = matched.pairs
    _check_judged(args.verdicts, judged, matched)
    return annotated(
        verdicts.outcomes(judged), pairs, model=args.model or args.a.stem, baseline=args.baseline or args.b.stem,
        annotator=judged[0].judge, dataset=args.dataset,
    )  # fmt: skip


def _check_judged(path: Path, judged: Sequence[Verdict], matched: Matched) -> None:
    """Another response under the same prompt and number would be exported with a verdict that it never had."""
    about = read_about(path.with_name(verdicts.ABOUT))
    if about.pairs != matched.digest:
        raise ValueError(f"{path}: want the files that were judged, got --a and --b with other pairs of responses")
    there = {verdict.key for verdict in judged}
    absent = [call.key for call in calls(matched.pairs, about.orders, about.seed or 0) if call.key not in there]
    if absent:
        raise ValueError(
            f"{path}: want all of them judged, got nothing for {len(absent)} judgements, {absent[0]} the first: the "
            "judging is not finished"
        )


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        "python -m evaluation.alpaca", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="what", required=True)
    outputs = commands.add_parser("outputs", help="responses for alpaca_eval to judge")
    outputs.add_argument("responses", type=Path)
    outputs.add_argument("--generator", required=True, help="the model's name")
    outputs.add_argument("--sample", type=int, default=0, help="which of a prompt's")
    judged = commands.add_parser("annotations", help="our verdicts")
    judged.add_argument("--a", type=Path, required=True, help="the model's responses")
    judged.add_argument("--b", type=Path, required=True, help="the baseline's")
    judged.add_argument("--verdicts", type=Path, required=True)
    judged.add_argument("--model", help="its name (default: the file's)")
    judged.add_argument("--baseline", help="its name (default: the file's)")
    for command in (outputs, judged):
        command.add_argument("--dataset", default="", help="its name, for every row")
        command.add_argument("--out", type=Path, required=True)
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())
