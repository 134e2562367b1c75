"""What a run shows: metrics, progress, samples, hints, the bottleneck report."""
