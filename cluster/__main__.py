"""``python -m cluster`` is the same as ``sapo``."""

from cluster.cli.app import main

if __name__ == "__main__":
    main()
