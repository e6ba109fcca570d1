"""The Hub: where an output is pushed to, and how."""
