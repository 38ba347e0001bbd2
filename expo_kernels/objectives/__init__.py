"""The objectives by name. Each is a frozen dataclass on a page of its own: formula, coefficients, what it needs.

make.py       a name and parameters -> an objective      parts/      what the pages share
with_sft.py   imitation beside any of them               check.py    coefficients against autograd
"""

from __future__ import annotations

from expo_kernels.objectives.adpo import ADPO
from expo_kernels.objectives.caldpo import CalDPO
from expo_kernels.objectives.check import check_objective
from expo_kernels.objectives.cpo import CPO
from expo_kernels.objectives.distill import Distill
from expo_kernels.objectives.dpo import DPO
from expo_kernels.objectives.dpop import DPOP
from expo_kernels.objectives.expo_comp import ExpoComp
from expo_kernels.objectives.expo_reg import ExpoReg
from expo_kernels.objectives.fdpo import FDPO
from expo_kernels.objectives.gpo import GPO
from expo_kernels.objectives.infifpo import InfiFPO
from expo_kernels.objectives.ipo import IPO
from expo_kernels.objectives.irpo import IRPO
from expo_kernels.objectives.kto import KTO
from expo_kernels.objectives.lddpo import LDDPO
from expo_kernels.objectives.make import make
from expo_kernels.objectives.odpo import ODPO
from expo_kernels.objectives.orpo import ORPO
from expo_kernels.objectives.rdpo import RDPO
from expo_kernels.objectives.rpo import RPO
from expo_kernels.objectives.sft import SFT
from expo_kernels.objectives.simpo import SimPO
from expo_kernels.objectives.slic import SLiC
from expo_kernels.objectives.with_sft import WithSFT
from expo_kernels.objectives.wrpo import WRPO
from expo_kernels.objectives.xpo import XPO
from expo_kernels.types import Objective

OBJECTIVES: dict[str, type] = {
    "expo_reg": ExpoReg,
    "expo_comp": ExpoComp,
    "dpo": DPO,
    "ipo": IPO,
    "gpo": GPO,
    "slic": SLiC,
    "fdpo": FDPO,
    "simpo": SimPO,
    "kto": KTO,
    "orpo": ORPO,
    "cpo": CPO,
    "odpo": ODPO,
    "dpop": DPOP,
    "rdpo": RDPO,
    "caldpo": CalDPO,
    "lddpo": LDDPO,
    "adpo": ADPO,
    "xpo": XPO,
    "sft": SFT,
    "distill": Distill,
    "rpo": RPO,
    "wrpo": WRPO,
    "irpo": IRPO,
    "infifpo": InfiFPO,
}


def make_objective(name: str, **parameters: object) -> Objective:
    """make_objective("expo_reg", lam=0.2): the objective of that name; unknown names and parameters are errors.

    sft_weight and sft_reduction mix imitation of the chosen response into any objective that averages over groups.
    """
    return make(OBJECTIVES, name, parameters)


__all__ = ["OBJECTIVES", "WithSFT", "check_objective", "make_objective", *(cls.__name__ for cls in OBJECTIVES.values())]
