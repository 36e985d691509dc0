"""Core types: the graph, sets, programs and results. Imports nothing from the other rooms."""
