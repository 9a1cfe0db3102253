"""Intervals, tests and decision rules: pure functions on arrays."""
