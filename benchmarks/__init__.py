"""Measurements. Every one checks correctness first; see README.md, "Benchmarks"."""
