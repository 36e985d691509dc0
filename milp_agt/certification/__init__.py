"""``certify()``: its options, the plan, the loop over the training steps, and the result."""
