"""What the project measures of itself; `tools/benchmark.py` runs it."""
