"""`--format gguf`: the GGUF file of the base with the edit folded into its tensors."""
