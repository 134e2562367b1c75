"""Faults on purpose: a run that is hit again and again, and what must be true of it afterwards."""
