"""Preference training from one command.

deepspeed train/run.py --config train/configs/llama3_8b_expo.yaml --output_dir runs/one
torchrun --nproc_per_node 8 train/run.py --config ...
python train/run.py --config ... --dry_run        # looks at data and memory, trains nothing
python train/run.py --help                        # every key
"""

from __future__ import annotations

import sys
import traceback
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[0] = str(ROOT)  # else train/ itself stands first, and `import train` fails

from train.arguments import parse  # noqa: E402


def main() -> int:
    settings = parse(sys.argv[1:])
    from train import build, launch  # after --help and bad keys, which need no torch

    code = 0
    try:
        build.run(settings)
    except (ValueError, TypeError, OSError, FloatingPointError) as error:
        code = 1
        if launch.rank() == 0 and not refused(error):
            traceback.print_exc()
        print(f"\ntrain (rank {launch.rank()}): {error}", file=sys.stderr, flush=True)
    except BaseException:
        code = 1
        traceback.print_exc()
    launch.finish(code)
    return code


def refused(error: BaseException) -> bool:
    """Whether it was raised by a line of ours, on purpose: then its message says what is to be done."""
    innermost = traceback.extract_tb(error.__traceback__)[-1].filename
    return any(str(ROOT / name) in innermost for name in ("train", "expo_kernels"))


if __name__ == "__main__":
    sys.exit(main())
