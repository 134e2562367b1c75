"""The demo: a small open-ended task with a checker, and a run of the whole system on it."""
