"""Two models' responses compared by a judge: any server with OpenAI's chat API."""
