"""Outcomes -> shares with intervals, and what is shown of them."""
