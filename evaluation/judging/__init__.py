"""Pairs of responses -> verdicts of a judge."""
