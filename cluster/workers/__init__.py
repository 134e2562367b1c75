"""Processes on the cluster: placed, started, watched, replaced."""
