"""The ceilings of a card: published peaks, the share of them that is attained, or what was measured on one.

Sources. bf16 peak (dense), memory bandwidth, NVLink and PCIe: NVIDIA's data sheets of A100 SXM, H100 SXM and H200. NICs
and host memory: NVIDIA's DGX A100 (8 x 200 Gb/s HDR, 2 x 8 channels of DDR4-3200) and DGX H100 and H200 (8 x 400 Gb/s
NDR, 2 x 8 channels of DDR5-4800). Memory that torch can have: total capacity in its out-of-memory messages. Shares are
assumptions, each with its reason below; benchmarks/gpu/ceilings.py measures products and copies in their place.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.ceilings import COPY, PRODUCTS

GPUS_OF_A_NODE = 8
USABLE = 0.92  # of the memory: the rest is CUDA's context, NCCL, fragmentation, layers kept gathered; an assumption
HBM = 0.85  # of the bandwidth, by kernels that stream; copies of large tensors reach 0.85 to 0.93
NVLINK = 0.8  # of one direction: A100 all-reduces by nccl-tests at 230 to 240 of 300 GB/s
NIC = 0.92  # 46 GB/s of 50, NVIDIA's own expectation for nccl-tests on NDR
PCIE = 0.8  # pinned copies: about 25 of 32 GB/s
HOST = 0.5  # of the host's memory, by DeepSpeed's CPU Adam on all ranks at once; an assumption


@dataclass(frozen=True, kw_only=True)
class Card:
    """GB/s, TF/s; of one GPU."""

    name: str
    device: tuple[str, ...]  # what torch's name of it contains
    memory_gib: float
    peak_tflops: float  # bf16, dense
    products: float  # share of that in large products
    attention: float  # share of that in flash attention, forward and backward together
    hbm: float
    nvlink: float  # one direction
    nic: float  # this GPU's share of the node
    pcie: float  # one direction
    host: float  # this GPU's share of the host's memory bandwidth
    hbm_share: float = HBM
    measured: bool = False

    @property
    def usable_bytes(self) -> int:
        return int(USABLE * self.memory_gib * 2**30)

    @property
    def flops(self) -> float:
        return 1e12 * self.peak_tflops * self.products

    @property
    def attention_flops(self) -> float:
        return 1e12 * self.peak_tflops * self.attention

    @property
    def bandwidth(self) -> float:
        return 1e9 * self.hbm * self.hbm_share

    def link(self, ranks: int) -> float:
        """Bytes a second that each rank receives in a collective of all: a ring crosses nodes once, so between nodes it
        shares all NICs of a node, and is never faster than NVLink."""
        within = 1e9 * self.nvlink * NVLINK
        return within if ranks <= GPUS_OF_A_NODE else min(within, 1e9 * self.nic * NIC * GPUS_OF_A_NODE)


# products: cuBLAS at the sizes of an 8B model reaches about 250 of 312 TF/s; H100 and H200 meet their power limit
# attention: FlashAttention-2's paper has 190 to 225 of 312 TF/s on an A100 and up to 335 on an H100
_A100: dict[str, Any] = {
    "peak_tflops": 312.0, "products": 0.8, "attention": 0.6, "nvlink": 300.0, "nic": 25.0, "pcie": 32.0, "host": 51.2,
}  # fmt: skip
_HOPPER: dict[str, Any] = {
    "peak_tflops": 989.4, "products": 0.7, "attention": 0.33, "nvlink": 450.0, "nic": 50.0, "pcie": 64.0, "host": 76.8,
}  # fmt: skip
CARDS = {
    card.name: card
    for card in (
        Card(name="a100-40g", device=("A100", "40GB"), memory_gib=39.5, hbm=1555.0, **_A100),
        Card(name="a100-80g", device=("A100", "80GB"), memory_gib=79.1, hbm=2039.0, **_A100),
        Card(name="h100", device=("H100",), memory_gib=79.1, hbm=3350.0, **_HOPPER),
        Card(name="h200", device=("H200",), memory_gib=139.8, hbm=4800.0, **_HOPPER),
    )
}


def card(name: str) -> Card:
    if name not in CARDS:
        raise ValueError(f"gpu: want one of {', '.join(CARDS)}, got {name!r}")
    return CARDS[name]


def read_ceilings(path: Path) -> list[dict[str, Any]]:
    """The records of benchmarks.ceilings or benchmarks.gpu.ceilings in a results file, {"records": [...]}, or JSON
    lines."""
    text = path.read_text(encoding="utf-8")
    try:
        whole = json.loads(text)
    except json.JSONDecodeError:
        whole = {"records": [json.loads(line) for line in text.splitlines() if line.strip()]}
    found = [one for one in whole.get("records", [whole]) if one.get("bench") == "ceilings"]
    if not found:
        raise ValueError(f"{path}: want records of bench 'ceilings', got none")
    return found


def with_ceilings(card: Card, records: Sequence[Mapping[str, Any]]) -> Card:
    """With the records' own products and copies in place of shares of a peak; as it was where none are of this card."""
    own = [one for one in records if all(part in one["device"] for part in card.device)]
    speeds = [one["tflops"] for one in own if one["what"] in PRODUCTS and one["dtype"] == "bf16"]
    copies = [one["gb_per_s"] for one in own if one["what"] == COPY]
    if not speeds or not copies:
        return card
    mean = len(speeds) / sum(1 / speed for speed in speeds)  # harmonic: of time
    return dataclasses.replace(
        card, products=mean / card.peak_tflops, hbm_share=max(copies) / card.hbm, measured=True
    )  # fmt: skip
