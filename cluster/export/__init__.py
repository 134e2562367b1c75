"""A model of a checkpoint as a Hugging Face folder for others: ``sapo export``."""
