"""`--format custom-code`: the base's weights, the edit's tensors, and the code that applies them."""
