"""Verification: whether an export is the edit that it should be, and whether a repeated run gave the same."""
