"""A run from start to end."""

from cluster.run.loop import train

__all__ = ["train"]
