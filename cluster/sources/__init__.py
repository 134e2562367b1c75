"""Where the learner's batches come from: a dataset, a recording, the generation actors."""
