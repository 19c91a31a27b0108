"""Measurements of what the estimators do: gradients, memory, time."""
