"""Several runs of the trainer in one set of ranks, as starting them is what takes time: `train_worker.py CASES.json`.

CASES is a list of command lines of train/run.py. Each run leaves, beside its model, watched.json: whether the head's
weight was sharded while the last layer of the body ran, forward and backward.
"""

from __future__ import annotations

import json
import sys
import traceback
from pathlib import Path
from typing import Any

sys.path[0] = str(Path(__file__).resolve().parent.parent)

from accelerate.state import AcceleratorState, GradientState, PartialState  # noqa: E402
from transformers.integrations.deepspeed import unset_hf_deepspeed_config  # noqa: E402

from train import build, launch  # noqa: E402
from train.arguments import parse  # noqa: E402

seen: list[str] = []


def watched(load: Any) -> Any:
    def load_and_watch(*args: Any, **kwargs: Any) -> Any:
        model = load(*args, **kwargs)
        base = model.get_base_model() if hasattr(model, "get_base_model") else model
        head, last = base.get_output_embeddings(), base.model.layers[-1]
        head = getattr(head, "original_module", head)
        weight = head.weight  # held here: to ask a module for its parameter is to gather it

        def look(*_: Any) -> None:
            if hasattr(weight, "ds_status"):
                seen.append(weight.ds_status.name)

        last.register_forward_hook(look)
        last.register_full_backward_hook(look)
        return model

    return load_and_watch


def main(cases: list[list[str]]) -> int:
    build.load_policy = watched(build.load_policy)  # type: ignore[assignment]
    for case in cases:
        seen.clear()
        for state in (AcceleratorState, PartialState, GradientState):
            state._reset_state()
        unset_hf_deepspeed_config()
        settings = parse(case)
        build.run(settings)
        path = Path(settings.output.output_dir) / f"watched-{launch.rank()}.json"
        path.write_text(json.dumps(sorted(set(seen))))
    return 0


if __name__ == "__main__":
    try:
        code = main(json.loads(Path(sys.argv[1]).read_text()))
    except BaseException:
        traceback.print_exc()
        code = 1
    launch.finish(code)
