"""Prompts and a model -> responses."""
