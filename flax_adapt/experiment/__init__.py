"""Experiments: running stages in order, choosing learning rates, measuring the results."""
