"""The base model: its files, its weights, its architecture, and how it is loaded."""
