"""The main loop of a kernel, found in its machine code, and what its instructions are.

Blocks end at branches and begin at labels; a loop is what a branch back to a block that dominates it goes round, so a
wait that was moved out of line does not pass for a loop of its own around half of another. The main loop is the
innermost one that holds tensor-core instructions. Where the compiler has unrolled it altogether, it is what lies
between the first and the last of them.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import NamedTuple

CLASSES = ("matrix", "async copy", "shared", "global", "local", "wait", "control", "arithmetic")
_NVIDIA = {
    "matrix": r"HMMA|HGMMA|IMMA|QGMMA|DMMA|UTC\w*MMA",
    "async copy": r"LDGSTS|UTMALDG|UTMASTG|UBLKCP",
    "shared": r"LDS|LDSM|STS|STSM|ATOMS|LDTM|STTM",  # and tensor memory
    "global": r"LDG|STG|LD|ST|ATOM|ATOMG|RED|REDG",
    "local": r"LDL|STL",
    "wait": r"BAR|SYNCS|DEPBAR|LDGDEPBAR|WARPGROUP|WARPSYNC|UTCBAR|UTMACMDFLUSH|MEMBAR|FENCE|ERRBAR|CCTL|NANOSLEEP",
    "control": r"BRA|BRX|JMP|CALL|RET|EXIT|BSSY|BSYNC|BREAK|BMOV|NOP|YIELD",
}
_AMD = {
    "matrix": r"v_mfma\w*",
    "shared": r"ds_\w+",
    "global": r"(?:buffer|global|flat)_\w+",
    "local": r"scratch_\w+",
    "wait": r"s_waitcnt\w*|s_barrier\w*",
    "control": r"s_c?branch\w*|s_endpgm|s_nop",
}


class Instruction(NamedTuple):
    opcode: str
    label: str | None = None  # that stands before it
    target: str | None = None  # where it may branch to
    ends: bool = False  # what follows is not reached from here


class Loop(NamedTuple):
    """Its instructions by class, those of waits that are gone round more than once only once."""

    counts: dict[str, int]
    unrolled: bool = False

    @property
    def total(self) -> int:
        return sum(self.counts.values())

    @property
    def share(self) -> float:
        """Of the matrix instructions in all."""
        return self.counts["matrix"] / self.total


def main_loop(text: str, *, amd: bool) -> Loop | None:
    """None where there is no matrix instruction at all."""
    code = [*(_amd_instructions(text) if amd else _nvidia_instructions(text))]
    classes = [class_of(one.opcode, amd=amd) for one in code]
    matrix = [i for i, name in enumerate(classes) if name == "matrix"]
    if not matrix:
        return None
    holding = [loop for loop in natural_loops(code) if not loop.isdisjoint(matrix)]
    innermost = [loop for loop in holding if not any(other < loop for other in holding)]
    straight = frozenset(range(matrix[0], matrix[-1] + 1))
    chosen = max(innermost, key=lambda loop: len(loop.intersection(matrix)), default=straight)
    counted = Counter(classes[i] for i in chosen)
    return Loop({name: counted[name] for name in CLASSES}, unrolled=not innermost)


def class_of(opcode: str, *, amd: bool) -> str:
    """What is in no list computes: addresses, predicates, moves and the arithmetic proper."""
    name = opcode.split(".")[0]
    return next((kind for kind, of in (_AMD if amd else _NVIDIA).items() if re.fullmatch(of, name)), "arithmetic")


def natural_loops(code: Sequence[Instruction]) -> list[frozenset[int]]:
    """The loops as sets of places in the code; those with one head are one."""
    blocks = _blocks(code)
    after = _successors(code, blocks)
    before: list[set[int]] = [{i for i, to in enumerate(after) if b in to} for b in range(len(blocks))]
    dominators = _dominators(before)
    bodies: dict[int, set[int]] = {}
    for tail, heads in enumerate(after):
        for head in heads & dominators[tail]:
            body, waiting = bodies.setdefault(head, {head}), [tail]
            while waiting:
                if (block := waiting.pop()) not in body:
                    body.add(block)
                    waiting += before[block]
    return [frozenset(i for block in body for i in blocks[block]) for body in bodies.values()]


def _blocks(code: Sequence[Instruction]) -> list[range]:
    starts = {0, *(i for i, one in enumerate(code) if one.label)}
    starts |= {i + 1 for i, one in enumerate(code) if one.target or one.ends} - {len(code)}
    ordered = sorted(starts)
    return [range(a, b) for a, b in zip(ordered, [*ordered[1:], len(code)], strict=True)]


def _successors(code: Sequence[Instruction], blocks: Sequence[range]) -> list[set[int]]:
    labels = {code[block[0]].label: b for b, block in enumerate(blocks)}
    after: list[set[int]] = []
    for b, block in enumerate(blocks):
        last = code[block[-1]]
        to = {labels[last.target]} if last.target in labels and last.target else set()
        after.append(to if last.ends or b + 1 == len(blocks) else to | {b + 1})
    return after


def _dominators(before: Sequence[set[int]]) -> list[set[int]]:
    """Of each block those that every way from the first goes through; all, of a block that no way leads to."""
    everything = set(range(len(before)))
    found = [{0}, *(everything for _ in before[1:])]
    changed = True
    while changed:
        changed = False
        for b in range(1, len(before)):
            ways = [found[p] for p in before[b]]
            made = {b} | set.intersection(*ways) if ways else everything
            changed, found[b] = changed or made != found[b], made
    return found


def _nvidia_instructions(text: str) -> Iterator[Instruction]:
    """Lines of nvdisasm: `.L_x_1:`, and `/*0a30*/  @!P0 BRA `(.L_x_1) ;`."""
    line = r"\s+/\*[0-9a-f]{4,}\*/\s+(@\S+\s+)?([A-Z][\w.]*)\s*(.*?)\s*;"
    for label, (guard, opcode, operands) in _labelled(text, r"(\.L_\w+):", line):
        branch = re.search(r"`\((\.L_\w+)\)", operands) if opcode.split(".")[0] == "BRA" else None
        # a branch with a predicate among its operands may fall through, as one behind a guard may
        plain = not guard and ((opcode == "BRA" and operands.startswith("`")) or opcode.split(".")[0] in _ENDS)
        yield Instruction(opcode, label, branch[1] if branch else None, plain)


_ENDS = ("EXIT", "RET", "BRX", "JMP")


def _amd_instructions(text: str) -> Iterator[Instruction]:
    """Lines of LLVM's assembler: `.LBB0_1:`, and `	s_cbranch_scc1 .LBB0_1`."""
    line = r"\s+((?:v|s|ds|buffer|global|flat|scratch)_\w+)\s*([^;]*)"
    for label, (opcode, operands) in _labelled(text, r"(\.LBB\w+):", line):
        branch = operands.strip() if "branch" in opcode else None
        yield Instruction(opcode, label, branch, opcode in ("s_branch", "s_endpgm"))


def _labelled(text: str, label: str, instruction: str) -> Iterator[tuple[str | None, tuple[str, ...]]]:
    """The parts of each instruction's line, with the label that stands right above it."""
    above = None
    for line in text.splitlines():
        if named := re.match(label, line):
            above = named[1]
        elif found := re.match(instruction, line):
            yield above, found.groups()
            above = None
