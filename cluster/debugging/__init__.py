"""``sapo debug``: a run's loop in one process, to be stepped through."""
