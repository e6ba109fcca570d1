"""Fitting: from activations to an edit."""
