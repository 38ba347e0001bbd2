"""Machine code -> numbers: what ptxas and the assembler say of registers and spills, and a count of instructions."""

from __future__ import annotations

import re
import subprocess
import tempfile
from pathlib import Path
from typing import NamedTuple

import triton

from tools.machine_code.compiling import Compiled
from tools.machine_code.loops import Loop, main_loop
from tools.machine_code.occupancy import programs

MAIN_LOOP = {
    "sm_80": r"\bHMMA\.",
    "sm_86": r"\bHMMA\.",
    "sm_90": r"\bHGMMA\.",
    "sm_100": r"\bUTCHMMA\b|\bUTCQMMA\b|\bUTCMMA\b",
    "gfx942": r"\bv_mfma_",
}
ASYNC_COPY = {
    "sm_80": r"\bLDGSTS\b",
    "sm_86": r"\bLDGSTS\b",
    "sm_90": r"\bLDGSTS\b|\bUTMALDG\b",
    "sm_100": r"\bLDGSTS\b|\bUTMALDG\b",
}
LOCAL_MEMORY = r"\b(?:LDL|STL)\b"


class Numbers(NamedTuple):
    registers: int
    spilled: int  # instructions that read or write local memory, and bytes of stack
    shared_bytes: int
    main_loop: int  # tensor-core instructions
    async_copies: int | None  # None where the architecture has none
    warps: int = 8
    tensor_columns: int = 0  # of tensor memory, where the architecture has it
    loop: Loop | None = None  # the main one, of a kernel with tensor-core instructions

    def programs(self, card: str) -> int:
        """That a multiprocessor holds at once."""
        return programs(
            card, registers=self.registers, shared_bytes=self.shared_bytes, warps=self.warps,
            tensor_columns=self.tensor_columns,
        )  # fmt: skip


def read(card: str, compiled: Compiled) -> Numbers:
    if card.startswith("gfx"):
        return _read_amd(card, compiled)
    code = _disassemble(compiled)
    return Numbers(
        registers=_used(code.resources, "REG"),
        spilled=_used(code.resources, "STACK") + len(re.findall(LOCAL_MEMORY, code.text)),
        shared_bytes=compiled.kernel.metadata.shared,
        main_loop=len(re.findall(MAIN_LOOP[card], code.text)),
        async_copies=len(re.findall(ASYNC_COPY[card], code.text)),
        warps=compiled.kernel.metadata.num_warps,
        tensor_columns=getattr(compiled.kernel.metadata, "tmem_size", 0) or 0,
        loop=main_loop(code.text, amd=False),
    )


def _read_amd(card: str, compiled: Compiled) -> Numbers:
    text = compiled.kernel.asm["amdgcn"]
    fields = {key: int(value) for key, value in re.findall(r"\.(\w+): +(\d+)\n", text)}
    return Numbers(
        registers=fields["vgpr_count"],
        # a scalar register that spills goes to a vector register's lanes, not to memory
        spilled=fields["vgpr_spill_count"] + fields["private_segment_fixed_size"],
        shared_bytes=compiled.kernel.metadata.shared,
        main_loop=len(re.findall(MAIN_LOOP[card], text)),
        async_copies=None,
        warps=compiled.kernel.metadata.num_warps,
        loop=main_loop(text, amd=True),
    )


class _Code(NamedTuple):
    text: str  # SASS
    resources: str


def _disassemble(compiled: Compiled) -> _Code:
    tools = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "kernel.cubin"
        file.write_bytes(compiled.kernel.asm["cubin"])
        text = _output(tools / "nvdisasm", "-c", file)
        return _Code(text, _output(tools / "cuobjdump", "-res-usage", file))


def _output(*command: object) -> str:
    return subprocess.run([str(part) for part in command], check=True, capture_output=True, text=True).stdout


def _used(resources: str, what: str) -> int:
    return max(int(value) for value in re.findall(rf"\b{what}:(\d+)", resources))
