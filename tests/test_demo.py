"""make demo, in small: what it prints is what it measured."""

from __future__ import annotations

import re

from toy import bandit


def test_the_demo_prints_a_table_that_falls_and_rises(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["bandit", "--epochs", "150", "--pairs", "100"])
    bandit.main()
    rows = re.findall(r"^ *(\S+)  \(.*?\) +\S+ -> (\S+) +(\S+)$", capsys.readouterr().out, re.M)
    assert [float(lam) for lam, *_ in rows] == [1e-5, 1e-2, 0.1, 1.0, 100.0]
    to_optimum, to_reference = zip(*((float(a), float(b)) for _, a, b in rows), strict=True)
    assert list(to_optimum) == sorted(to_optimum) and list(to_reference) == sorted(to_reference, reverse=True)
