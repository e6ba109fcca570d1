"""The edit: what is done to activations, how it folds into weights, and how it is stored."""
