"""The plan of chunks: which tokens are scored together, so that whole groups fit the rows the workspace has."""

from __future__ import annotations

import itertools
from typing import NamedTuple

from expo_kernels.types import HostLayout

Range = tuple[int, int]


class Unit(NamedTuple):
    """Groups whose coefficients become known together. Token ranges count in group order.

    The last part's score is kept for the gradient; earlier parts, which a unit larger than the workspace has, are
    scored again. `anchors` are tokens that ride along with a unit of one part: their coefficient is known beforehand.
    """

    groups: Range
    parts: tuple[Range, ...]
    anchors: Range


def chunk_plan(host: HostLayout, rows: int, whole_batch: bool = False) -> tuple[Unit, ...]:
    """Units of whole groups in at most `rows` tokens each, balanced, with the anchors in whatever room is left."""
    sizes = _group_sizes(host)
    grouped, first = sum(sizes), host.grouped_sequences
    anchor_tokens = sum(host.lengths[first : first + host.anchors])
    if whole_batch:
        spans = [(0, host.groups)] if host.groups else []
        limit = rows
    else:
        limit = _balanced_limit(sizes, anchor_tokens, rows)
        spans = _pack(sizes, limit)
    return tuple(_units(spans, sizes, limit, rows, grouped, anchor_tokens))


def split_parts(begin: int, end: int, rows: int) -> tuple[Range, ...]:
    """[begin, end) in parts of at most `rows`, the last one as large as can be, since it is the one that is kept."""
    kept = min(rows, end - begin)
    rest = end - begin - kept
    pieces = -(-rest // rows)
    cuts = [begin + rest * i // pieces for i in range(pieces)] + [begin + rest, end]
    return tuple(itertools.pairwise(cuts))


def _group_sizes(host: HostLayout) -> list[int]:
    K, P = host.roles, host.groups
    return [sum(host.lengths[k * P + p] for k in range(K)) for p in range(P)]


def _pack(sizes: list[int], limit: int) -> list[Range]:
    """Groups in order, as many as fit; one that exceeds the limit stands alone."""
    spans, begin, load = [], 0, 0
    for p, size in enumerate(sizes):
        if p > begin and load + size > limit:
            spans.append((begin, p))
            begin, load = p, 0
        load += size
    return spans + ([(begin, len(sizes))] if sizes else [])


def _chunk_count(sizes: list[int], anchor_tokens: int, limit: int) -> int:
    spans = _pack(sizes, limit)
    spare = sum(max(limit - sum(sizes[a:b]), 0) for a, b in spans)
    return len(spans) + -(-max(anchor_tokens - spare, 0) // limit)


def _balanced_limit(sizes: list[int], anchor_tokens: int, rows: int) -> int:
    """The smallest load that needs no more chunks than `rows` does: full chunks with a short tail become even ones."""
    least = max([size for size in sizes if size <= rows] + [1])
    target, high = _chunk_count(sizes, anchor_tokens, rows), rows
    while least < high:
        middle = (least + high) // 2
        if _chunk_count(sizes, anchor_tokens, middle) <= target:
            high = middle
        else:
            least = middle + 1
    return high


def _units(spans: list[Range], sizes: list[int], limit: int, rows: int, token: int, anchor_tokens: int) -> list[Unit]:
    units, begin, anchor, last = [], 0, token, token + anchor_tokens
    for span in spans:
        end = begin + sum(sizes[span[0] : span[1]])
        room = min(max(limit - (end - begin), 0), last - anchor)
        units.append(Unit(span, split_parts(begin, end, rows), (anchor, anchor + room)))
        begin, anchor = end, anchor + room
    while anchor < last:
        room = min(limit, last - anchor)
        units.append(Unit((len(sizes), len(sizes)), (), (anchor, anchor + room)))
        anchor += room
    return units
