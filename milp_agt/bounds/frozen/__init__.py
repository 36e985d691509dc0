"""Layers in front that do not train: bounded once, before the first step."""
