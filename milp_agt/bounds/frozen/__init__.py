"""Frozen layers in front of the trainable ones, bounded once, before the first step."""
