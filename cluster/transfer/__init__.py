"""The average's weights on their way to the engines, through vLLM's weight transfer interface."""
