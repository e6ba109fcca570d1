"""`--format adapter`: the edit as a PEFT adapter beside the base."""
