"""DeepSpeed learner ranks: pack, forward, objective, step, average, publish."""
