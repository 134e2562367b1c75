"""DeepSpeed learner ranks: pack, forward, objective, step, EMA, publish."""
