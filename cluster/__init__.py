"""Starts, places, watches and reports on everything: config, command line, run loop, weight transfer."""
