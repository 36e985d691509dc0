"""Interval bound propagation through a training step."""
