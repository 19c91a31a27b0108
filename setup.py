"""For tools that still ask for it: what the package is stands in pyproject.toml."""

from setuptools import setup

setup()
