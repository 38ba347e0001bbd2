"""What a batch's own lengths say: its empty groups and its default divisors."""

from __future__ import annotations

from expo_kernels.types import Counts, HostLayout


def active_groups(host: HostLayout) -> list[bool]:
    """[P]: a group is active when none of its sequences is empty."""
    K, P = host.roles, host.groups
    return [all(host.lengths[k * P + p] for k in range(K)) for p in range(P)]


def empty_groups(host: HostLayout) -> int:
    return host.groups - sum(active_groups(host))


def default_divisors(host: HostLayout) -> Counts:
    """The batch's own counts, at least 1 so that nothing divided by them is 0 / 0."""
    active = active_groups(host)
    first = host.grouped_sequences
    anchors = sum(1 for length in host.lengths[first : first + host.anchors] if length)
    tokens = sum(host.lengths[p] for p in range(host.groups) if active[p])
    return Counts(groups=max(sum(active), 1), anchors=max(anchors, 1), tokens=max(tokens, 1))
