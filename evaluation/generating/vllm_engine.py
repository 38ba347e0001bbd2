"""The same requests through vLLM, where it is installed (the extra [vllm]).

Tested against a stand-in of the few names that are used here, not against vLLM itself. A request has a seed of its own,
so its random numbers do not depend on the others; vLLM's logits do, in the last bits, on what runs beside it. Texts are
not those of the Hugging Face engine: the same seed means other random numbers.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import Any

from evaluation.generating.checkpoint import Checkpoint
from evaluation.generating.hf_engine import Generated, Request, ended
from evaluation.generating.sampling import Sampling


def vllm_module() -> Any:
    try:
        return importlib.import_module("vllm")
    except ImportError as error:
        raise ImportError(f"engine vllm: want the package vllm, got {error}; --engine hf works without it") from error


class VLLMEngine:
    def __init__(self, checkpoint: Checkpoint, seed: int) -> None:
        self._checkpoint, self._vllm = checkpoint, vllm_module()
        self._llm = self._vllm.LLM(
            model=checkpoint.path, revision=checkpoint.revision, tokenizer_revision=checkpoint.revision,
            trust_remote_code=checkpoint.trust_remote_code, dtype=checkpoint.dtype, seed=seed,
            generation_config="vllm",  # not the sampling settings that come with the model
        )  # fmt: skip

    def __call__(self, requests: Sequence[Request], sampling: Sampling) -> list[Generated]:
        prompts = [{"prompt_token_ids": request.ids} for request in requests]
        parameters = [self._parameters(request, sampling) for request in requests]
        made = self._llm.generate(prompts, parameters, use_tqdm=False)
        if len(made) != len(requests):
            raise RuntimeError(f"engine vllm: want {len(requests)} outputs, got {len(made)}")
        return [self._generated(output.outputs[0]) for output in made]

    def _parameters(self, request: Request, own: Sampling) -> Any:
        return self._vllm.SamplingParams(
            n=1, temperature=own.temperature, top_p=own.top_p, top_k=own.top_k or -1, max_tokens=own.max_tokens,
            repetition_penalty=own.repetition_penalty, seed=request.seed, stop_token_ids=list(self._checkpoint.eos),
            detokenize=False,
        )  # fmt: skip

    def _generated(self, output: Any) -> Generated:
        """The token that ends a response may or may not be among its tokens."""
        made = ended(list(output.token_ids), self._checkpoint.eos)
        return made._replace(finish="stop") if output.finish_reason == "stop" else made
