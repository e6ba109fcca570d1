"""Edits made of what other programs have found: vectors and directions in files of several forms."""
