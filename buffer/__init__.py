"""Sharded replay of preference pairs: leases, rate limit, sampling, shards, snapshots."""
