"""Measurements against peers; each prints a table and writes JSON."""
