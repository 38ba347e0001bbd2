"""f-DPO, DPO under another divergence: arXiv 2309.16240, theorem 1 and table 1."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import softplus

from expo_kernels.objectives.parts.checks import check_choice, check_number
from expo_kernels.objectives.parts.pairs import difference, log_ratios, on_margin
from expo_kernels.objectives.parts.shapes import Shape, limited_exp, logistic
from expo_kernels.types import Needs, SequenceLogprobs, Terms

DIVERGENCES = ("js", "forward_kl", "reverse_kl", "alpha")


@dataclass(frozen=True, kw_only=True)
class FDPO:
    """f-DPO. DPO with the reward beta f'(u) of the ratio u = e^rho, for the divergence that f generates.

        loss = -log s(m)      m = beta (f'(u_w) - f'(u_l))      rho = logp - ref
        d loss / d logp_w = -beta s(-m) df'(u_w) / d rho_w      and the other sign for l

                        f'                          d f' / d rho
        js              log 2 - softplus(-rho)      s(-rho)
        reverse_kl      rho  (DPO)                  1
        forward_kl      1 - e^-rho                  e^-rho
        alpha           (1 - e^(-a rho)) / a        e^(-a rho)      a = alpha in (0, 1)

    Constants of f' cancel in m. The exponentials go on as their tangents where their exponent passes 20: the slope
    saturates at e^20. The reward is beta f'.
    """

    paper: ClassVar[str] = "2309.16240, table 1"
    formula: ClassVar[str] = "-log s(beta (f'(e^rho_w) - f'(e^rho_l)))"

    divergence: str
    beta: float = 0.1
    alpha: float | None = None

    def __post_init__(self) -> None:
        check_choice("fdpo", "divergence", self.divergence, DIVERGENCES)
        check_number("fdpo", "beta", self.beta, open_low=True)
        if self.divergence == "alpha":
            check_number("fdpo", "alpha", self.alpha, 0.0, 1.0, open_low=True, open_high=True)
        elif self.alpha is not None:
            raise ValueError(
                f'fdpo: want alpha for divergence "alpha" only, got {self.alpha!r} for {self.divergence!r}'
            )

    @property
    def needs(self) -> Needs:
        return Needs(reference=True)

    def __call__(self, logps: SequenceLogprobs) -> Terms:
        prime = self._prime(log_ratios(logps))
        rewards = self.beta * prime.value
        margin = difference(rewards)
        return on_margin(*logistic(margin), self.beta * prime.slope, rewards, margin)

    def _prime(self, rho: Tensor) -> Shape:
        """f' as a function of rho [2, P]."""
        if self.divergence == "reverse_kl":
            return Shape(rho, torch.ones_like(rho))
        if self.divergence == "js":
            # beyond 20 softplus is the identity to the last bit of fp32, but not of float64
            return Shape(math.log(2.0) - softplus(-rho, threshold=40.0), torch.sigmoid(-rho))
        a = 1.0 if self.alpha is None else self.alpha
        decay = limited_exp(-a * rho)
        return Shape((1.0 - decay.value) / a, decay.slope)
