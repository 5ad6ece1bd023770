"""Training: the one loop, its compiled programs, checkpoints and the run directory."""
