"""One run's configuration: sections, rules across them, loading, messages about what is wrong."""
