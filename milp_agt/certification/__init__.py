"""From a model, its data and its training to a result: the plan, the loop over the steps, the result."""
