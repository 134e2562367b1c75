"""Scores a model on prompts with a check of the user's own."""
