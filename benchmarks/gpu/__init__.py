"""What one GPU does with this program and its peers: one table."""
