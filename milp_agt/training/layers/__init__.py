"""Layers of torch models as nodes of the graph: one handler for each kind of layer."""
