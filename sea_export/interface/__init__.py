"""Everything that a command does, as one call from Python with the same words. `sea_export` has these calls."""
