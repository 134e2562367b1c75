"""What a run is doing at this moment: collected by its driver, kept by its mailbox, shown by ``sapo status``."""
