"""The model as the learner computes it: loading, packing, attention, forward, self-check."""
