"""Tuning: a search of an edit's settings for a benchmark score within a damage budget."""
