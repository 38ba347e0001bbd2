"""Everything is in pyproject.toml. The C++ extension will be declared here once csrc/ exists."""

from setuptools import setup

setup()
