"""One run: inputs, parts, the loop, what hangs on its moments."""
