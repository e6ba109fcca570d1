"""Evaluation: benchmarks, damage, statistics, reports and pictures."""
