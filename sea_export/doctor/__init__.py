"""Doctor: what this machine has, and what a job would cost on it."""
