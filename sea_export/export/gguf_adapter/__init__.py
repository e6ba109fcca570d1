"""`--format gguf-adapter`: the edit as files that llama.cpp reads beside the base: a LoRA and a control vector."""
