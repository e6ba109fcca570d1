"""Patches: what an output has that its base has not, in one file."""
