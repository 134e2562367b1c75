"""What tests of several folders share: running engines, groups of ranks, paths."""
