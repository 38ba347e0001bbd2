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

from evaluation import files, responses
from evaluation.inputs import InputError, checking
from evaluation.judging import verdicts
from evaluation.judging.cache import Cache
from evaluation.judging.estimate import Estimate, Prices, usual_answer
from evaluation.judging.judge import LIMIT_NAMES, JudgeSettings, api_key
from evaluation.judging.pairing import ORDERS, Call, Matched, calls, match
from evaluation.judging.run import NoAnswersError, Tally, Work, judge_all, opened, unanswered
from evaluation.judging.templates import TEMPLATES, Template, load
from evaluation.judging.verdicts import ABOUT, REPORT, VERDICTS, About


@dataclass(frozen=True, kw_only=True)
class Contest:
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
    except (InputError, OSError, sqlite3.Error) as error:
        print(f"evaluation.winrate: {error}", file=sys.stderr)
        return 2
    except NoAnswersError as error:
        print(f"evaluation.winrate: {error}\nthe same command goes on from here", file=sys.stderr)
        return 1
    except (asyncio.CancelledError, KeyboardInterrupt):
        print("evaluation.winrate: stopped; the same command goes on from here", file=sys.stderr)
        return 130


def run(args: argparse.Namespace) -> int:
    with checking():
        settings, prices, template = _settings(args), _prices(args), load(args.template)
        key = api_key(args.api_key_env, settings)
        *names, baseline = _labels([*args.a, args.b])
        _check_files(args, names)
        b = responses.read(args.b)
        matched = [match(responses.read(path), b) for path in args.a]
        opening = Cache(args.cache)
    with opening as cache:
        contests = [
            _contest(name, found, args, settings, template, cache) for name, found in zip(names, matched, strict=True)
        ]
        for contest in contests:
            _announce(contest, args.seconds_per_answer, prices)
        if args.dry_run:
            return 0
        failed = [_judge(contest, key, prices) for contest in contests]
    _report(args.out, contests, baseline, args.seed)
    if any(failed):
        print(f"{sum(failed)} judgements have no answer; the same command asks for them again", file=sys.stderr)
    return 1 if any(failed) else 0


def _labels(paths: Sequence[Path]) -> list[str]:
    made = files.names_of(paths)
    if made is None:
        told = [str(path) for path in paths]
        raise ValueError(f"--a and --b: want files that their names or folders tell apart, got {told}")
    return made


def _check_files(args: argparse.Namespace, names: Sequence[str]) -> None:
    outputs = [args.cache, *(args.out / name for name in REPORT)]
    outputs += [args.out / label / name for label in names for name in (VERDICTS, ABOUT)]
    own = [] if args.template in TEMPLATES else [Path(args.template)]
    files.check_outputs(outputs, [*args.a, args.b, *own])


def _contest(
    label: str, matched: Matched, args: argparse.Namespace, settings: JudgeSettings, template: Template, cache: Cache
) -> Contest:
    about = About(
        judge=settings.model, url=settings.url, sampling=settings.sampling, template=template.identity,
        orders=args.orders, seed=args.seed if args.orders == "random" else None, pairs=matched.digest,
    )  # fmt: skip
    work = Work(folder=args.out / label, settings=settings, template=template, cache=cache, stop_after=args.stop_after)
    return Contest(
        label=label, matched=matched, calls=calls(matched.pairs, args.orders, args.seed), about=about, work=work
    )


def _announce(contest: Contest, seconds: float, prices: Prices | None) -> None:
    """Before anything is asked."""
    work = contest.work
    with opened(work.folder, contest.about) as judged:
        left = unanswered(contest.calls, judged).all
        new = [call for call in left if work.cache.get(work.key(call)) is None]
        estimate = Estimate(
            wanted=len(contest.calls), judged=len(contest.calls) - len(left), cached=len(left) - len(new),
            characters=sum(len(call.message(work.template)) for call in new), answer_tokens=usual_answer(judged),
            max_tokens=work.settings.max_tokens, seconds=seconds, concurrency=work.settings.concurrency, prices=prices,
        )  # fmt: skip
    print(f"{contest.label}: {len(contest.matched.pairs)} pairs")
    for cause, count in contest.matched.unmatched.items():
        print(f"  not compared: {count} responses {cause}")
    print(*(f"  {line}" for line in estimate.lines()), sep="\n", flush=True)


def _judge(contest: Contest, key: str | None, prices: Prices | None) -> int:
    """-> judgements that failed."""
    begun = time.monotonic()
    with opened(contest.work.folder, contest.about) as judged:
        left = unanswered(contest.calls, judged)
        tally = judge_all(contest.work, left, key) if left.all else Tally()
    cost = "" if prices is None else f", cost {prices.of(tally.prompt_tokens, tally.answer_tokens):.2f}"
    print(
        f"{contest.label}: asked {tally.asked} in {time.monotonic() - begun:.1f} s, {tally.cached} from the cache, "
        f"{tally.unparsable} without a verdict ({tally.cut} of them cut), {tally.failed} failed; "
        f"{tally.prompt_tokens:,} tokens of prompts, {tally.answer_tokens:,} of answers{cost}",
        flush=True,
    )
    if tally.stopped:
        print(f"{contest.label}: not all that failed before were asked again: {tally.stopped}", file=sys.stderr)
    return tally.failed


def _report(out: Path, contests: Sequence[Contest], baseline: str, seed: int) -> None:
    # they load scikit-learn and matplotlib, seconds that a dry run and a resume need not wait
    from evaluation.reporting import report
    from evaluation.reporting.statistics import summarise

    comparisons = []
    for contest in contests:
        outcomes = verdicts.outcomes(verdicts.read(contest.work.folder / VERDICTS))
        lengths = contest.matched.lengths
        comparisons.append(
            report.Comparison(
                model=contest.label, baseline=baseline, judge=contest.about.judge, template=contest.about.template,
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
