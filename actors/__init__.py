"""vLLM generation actors: plan, cut, sample, splice, insert."""
