"""`--format merged`: the edit folded into the weights."""
