"""Responses to one prompt -> how different they are."""
