"""Benchmarks: each one launches runs as a user does, in turn, and tells medians with their spread."""
