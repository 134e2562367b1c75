"""What is minimised: the objectives, and the reference that they compare with."""
