"""The average's weights on their way to the engines, through vLLM's weight transfer interface."""

import logging

# Its import warns that Triton has no CPU backend, which is no news to anyone who runs on CPU.
logging.getLogger("vllm.triton_utils.importing").setLevel(logging.ERROR)
