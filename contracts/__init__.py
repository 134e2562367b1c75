"""What all parts agree on: the preference pair, the error that a user reads, the base of every config section."""
