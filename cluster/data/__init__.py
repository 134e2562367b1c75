"""From files to token ids: rows, conversations, tokens, and what became of each row."""
