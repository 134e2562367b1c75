"""What a run would need and how fast it would be, computed before anything starts."""
