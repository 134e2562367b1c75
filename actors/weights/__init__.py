"""Published weights on their way into a running engine: wire format, receivers, direct load."""
