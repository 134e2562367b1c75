"""``python -m cluster`` is the same as ``sapo``."""

from cluster.cli import main

if __name__ == "__main__":
    main()
