"""What is asked for, what a checkpoint is, and what comes back. Plain values: imports no torch."""
