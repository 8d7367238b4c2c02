"""What is asked for and what comes back. Plain values: imports no torch."""
