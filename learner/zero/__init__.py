"""Everything that depends on how DeepSpeed shards the weights: engine, EMA, optimizer, checkpoints."""
