"""Published weights on their way out of the learner: staging, senders, client, parity check."""
