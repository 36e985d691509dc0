"""Questions about the set of reachable models; one room for each.

``models`` bounds forms of outputs and parameters; a question says which forms it needs and what
follows from their bounds; ``Question.answer`` makes the answer.
"""
