"""Capture: the activations of a model over demonstrations, in memory or one layer at a time."""
