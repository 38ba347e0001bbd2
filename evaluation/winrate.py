"""python -m evaluation.winrate --a A.jsonl [more files] --b B.jsonl --judge-url URL --judge-model NAME --out DIR

Every file of --a against the baseline --b, judged by a model that speaks the OpenAI protocol; a folder of verdicts for
each and one report. Stopped at any time, the same command goes on. Exit code 0 only where every judgement was answered,
1 where some were not, 2 for bad input, 130 where it was stopped.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import sqlite3
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from evaluation import responses, verdicts
from evaluation.cache import Cache
from evaluation.estimate import Estimate, Prices, usual_answer
from evaluation.judge import LIMIT_NAMES, JudgeSettings, api_key
from evaluation.judging import VERDICTS, About, NoAnswersError, Tally, Work, judge_all, opened, unanswered
from evaluation.pairing import ORDERS, Call, Matched, calls, match
from evaluation.templates import TEMPLATES, Template, load


@dataclass(frozen=True, kw_only=True)
class Plan:
    """One file against the baseline."""

    label: str
    matched: Matched
    calls: list[Call]
    about: About
    work: Work


def main(argv: Sequence[str] | None = None) -> int:
    args = _arguments(argv)
    try:
        return run(args)
    except (ValueError, OSError, sqlite3.Error) as error:
        print(f"evaluation.winrate: {error}", file=sys.stderr)
        return 2
    except NoAnswersError as error:
        print(f"evaluation.winrate: {error}\nthe same command goes on from here", file=sys.stderr)
        return 1
    except (asyncio.CancelledError, KeyboardInterrupt):
        print("evaluation.winrate: stopped; the same command goes on from here", file=sys.stderr)
        return 130


def run(args: argparse.Namespace) -> int:
    settings, prices, template = _settings(args), _prices(args), load(args.template)
    key = api_key(args.api_key_env, settings)
    *names, baseline = labels([*args.a, args.b])
    b = responses.read(args.b)
    matched = [match(responses.read(path), b) for path in args.a]
    with Cache(args.cache) as cache:
        plans = [
            _plan(name, found, args, settings, template, cache) for name, found in zip(names, matched, strict=True)
        ]
        for plan in plans:
            _announce(plan, args.seconds_per_answer, prices)
        if args.dry_run:
            return 0
        failed = [_judge(plan, key, prices) for plan in plans]
    _report(args.out, plans, baseline, args.seed)
    if any(failed):
        print(f"{sum(failed)} judgements have no answer; the same command asks for them again", file=sys.stderr)
    return 1 if any(failed) else 0


def labels(paths: Sequence[Path]) -> list[str]:
    """File names without endings, with their folder's where two files have one name."""
    makers: list[Callable[[Path], str]] = [
        lambda path: path.stem, lambda path: f"{path.resolve().parent.name}-{path.stem}"
    ]  # fmt: skip
    for make in makers:
        made = [make(path) for path in paths]
        if len(set(made)) == len(made):
            return made
    raise ValueError(
        f"--a and --b: want files that their names or folders tell apart, got {[str(path) for path in paths]}"
    )


def _plan(
    label: str, matched: Matched, args: argparse.Namespace, settings: JudgeSettings, template: Template, cache: Cache
) -> Plan:
    about = About(
        judge=settings.model, url=settings.url, sampling=settings.sampling, template=template.identity,
        orders=args.orders, seed=args.seed if args.orders == "random" else None, pairs=matched.digest,
    )  # fmt: skip
    work = Work(folder=args.out / label, settings=settings, template=template, cache=cache, stop_after=args.stop_after)
    return Plan(
        label=label, matched=matched, calls=calls(matched.pairs, args.orders, args.seed), about=about, work=work
    )


def _announce(plan: Plan, seconds: float, prices: Prices | None) -> None:
    """Before anything is asked."""
    with opened(plan.work.folder, plan.about) as judged:
        left = unanswered(plan.calls, judged)
        new = [call for call in left if plan.work.cache.get(plan.work.key(call)) is None]
        estimate = Estimate(
            wanted=len(plan.calls), judged=len(plan.calls) - len(left), cached=len(left) - len(new),
            characters=sum(len(call.message(plan.work.template)) for call in new), answer_tokens=usual_answer(judged),
            max_tokens=plan.work.settings.max_tokens, seconds=seconds, concurrency=plan.work.settings.concurrency,
            prices=prices,
        )  # fmt: skip
    print(f"{plan.label}: {len(plan.matched.pairs)} pairs")
    for cause, count in plan.matched.unmatched.items():
        print(f"  not compared: {count} responses {cause}")
    print(*(f"  {line}" for line in estimate.lines()), sep="\n", flush=True)


def _judge(plan: Plan, key: str | None, prices: Prices | None) -> int:
    """-> judgements that failed."""
    begun = time.monotonic()
    with opened(plan.work.folder, plan.about) as judged:
        left = unanswered(plan.calls, judged)
        tally = judge_all(plan.work, left, key) if left else Tally()
    cost = "" if prices is None else f", cost {prices.of(tally.prompt_tokens, tally.answer_tokens):.2f}"
    print(
        f"{plan.label}: asked {tally.asked} in {time.monotonic() - begun:.1f} s, {tally.cached} from the cache, "
        f"{tally.unparsable} without a verdict, {tally.failed} failed; {tally.prompt_tokens:,} tokens of prompts, "
        f"{tally.answer_tokens:,} of answers{cost}",
        flush=True,
    )
    return tally.failed


def _report(out: Path, plans: Sequence[Plan], baseline: str, seed: int) -> None:
    # they load scikit-learn and matplotlib, seconds that a dry run and a resume need not wait
    from evaluation import report
    from evaluation.statistics import summarise

    comparisons = []
    for plan in plans:
        outcomes = verdicts.outcomes(verdicts.read(plan.work.folder / VERDICTS))
        lengths = plan.matched.lengths
        comparisons.append(
            report.Comparison(
                model=plan.label, baseline=baseline, judge=plan.about.judge, template=plan.about.template,
                summary=summarise(outcomes, lengths, seed=seed), outcomes=outcomes, lengths=lengths,
            )
        )  # fmt: skip
    paths = report.write(out, comparisons)
    print(report.page(comparisons), *paths, sep="\n")


def _settings(args: argparse.Namespace) -> JudgeSettings:
    return JudgeSettings(
        url=args.judge_url, model=args.judge_model, temperature=args.temperature, max_tokens=args.max_tokens,
        limit_name=args.limit_name, concurrency=args.concurrency, timeout=args.timeout, attempts=args.attempts,
        backoff=args.backoff, longest_wait=args.longest_wait,
    )  # fmt: skip


def _prices(args: argparse.Namespace) -> Prices | None:
    given = args.price_prompt, args.price_answer
    if given == (None, None):
        return None
    if None in given:
        raise ValueError("want --price-prompt and --price-answer both, got one")
    return Prices(prompt=args.price_prompt, answer=args.price_answer)


def _temperature(text: str) -> float | None:
    return None if text == "default" else float(text)


def _cache_path() -> Path:
    place = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(place).expanduser() / "expo_kernels" / "judge.sqlite3"


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        "python -m evaluation.winrate", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    _add_what(parser.add_argument)
    _add_judge(parser.add_argument)
    _add_costs(parser.add_argument)
    args = parser.parse_args(argv)
    if args.stop_after < 1:
        parser.error(f"--stop-after: want at least 1, got {args.stop_after}")
    return args


def _add_what(add: Callable[..., object]) -> None:
    add("--a", type=Path, nargs="+", required=True, help="files of responses, one a model")
    add("--b", type=Path, required=True, help="the baseline's responses")
    add("--out", type=Path, required=True, help="folder of verdicts and report")
    add("--template", default="helpful_harmless", help=f"{', '.join(TEMPLATES)}, or a file with placeholders")
    add("--orders", choices=ORDERS, default="both", help="both, or one at random a pair")
    add("--seed", type=int, default=0, help="of random orders and of resampling")


def _add_judge(add: Callable[..., object]) -> None:
    defaults = JudgeSettings(url="http://localhost", model="any")
    add("--judge-url", required=True, help="the judge's base_url, for instance http://localhost:8000/v1")
    add("--judge-model", required=True)
    add("--api-key-env", default="OPENAI_API_KEY", help="environment variable that holds the key")
    add("--temperature", type=_temperature, default=0.0, help="or default: the server's own")
    add("--max-tokens", type=int, default=defaults.max_tokens, help="of an answer")
    add("--limit-name", choices=LIMIT_NAMES, default=defaults.limit_name, help="what the server calls --max-tokens")
    add("--concurrency", type=int, default=defaults.concurrency, help="requests at once")
    add("--timeout", type=float, default=defaults.timeout, help="seconds for a whole answer")
    add("--attempts", type=int, default=defaults.attempts, help="for each judgement")
    add("--backoff", type=float, default=defaults.backoff, help="seconds before the second attempt, then doubled")
    add("--longest-wait", type=float, default=defaults.longest_wait, help="seconds before an attempt, at most")
    add("--stop-after", type=int, default=20, help="judgements in a row without an answer")


def _add_costs(add: Callable[..., object]) -> None:
    add("--cache", type=Path, default=_cache_path(), help="file of answers, may be shared (default: %(default)s)")
    add("--price-prompt", type=float, help="of a million tokens of prompts")
    add("--price-answer", type=float, help="of a million tokens of answers")
    add("--seconds-per-answer", type=float, default=3.0, help="for the estimate of time")
    add("--dry-run", "--dry_run", action="store_true", help="stop after the estimate")


if __name__ == "__main__":
    sys.exit(main())
