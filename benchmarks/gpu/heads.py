"""bench_head at several sizes, one after the other in one process, so that its start is paid once:

    python -m benchmarks.gpu.heads --tokens 32768 16384 4096 -- --model llama3-8b --mode step --save FILE

What stands after -- goes to bench_head as it is. A size that fails is reported and the next one goes on.
"""

from __future__ import annotations

import argparse
import gc
import sys
import traceback
from collections.abc import Callable

import torch

from benchmarks import bench_head


def main(arguments: list[str] | None = None, bench: Callable[[list[str]], object] = bench_head.main) -> int:
    """-> how many of the sizes failed."""
    sizes, more = parse(sys.argv[1:] if arguments is None else arguments)
    failed = [size for size in sizes if not _one(size, more, bench)]
    if failed:
        print(f"failed: {', '.join(f'{size} tokens' for size in failed)} of {len(sizes)} sizes", flush=True)
    return len(failed)


def _one(size: int, more: list[str], bench: Callable[[list[str]], object]) -> bool:
    try:
        return not bench(["--tokens", str(size), *more])
    except SystemExit as ended:
        if ended.code:
            print(f"{size} tokens: {ended.code}", flush=True)
        return not ended.code
    except Exception:
        traceback.print_exc(file=sys.stdout)
        return False
    finally:
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def parse(arguments: list[str]) -> tuple[list[int], list[str]]:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu.heads", description=__doc__, allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("--tokens", type=int, nargs="+", required=True, help="the sizes, in this order")
    own, dashes, more = _split(arguments)
    args = parser.parse_args(own)
    if not dashes or not more:
        parser.error("want -- and the other arguments of bench_head after the sizes")
    if "--tokens" in more:
        parser.error("--tokens stands before --, once")
    return args.tokens, more


def _split(arguments: list[str]) -> tuple[list[str], bool, list[str]]:
    if "--" not in arguments:
        return arguments, False, []
    at = arguments.index("--")
    return arguments[:at], True, arguments[at + 1 :]


if __name__ == "__main__":
    sys.exit(1 if main() else 0)
