"""Sharded replay of preference pairs: records, shards, rate limit, sampling, snapshots."""
