"""What this machine has and lacks for a run; each finding with its remedy."""
