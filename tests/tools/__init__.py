"""Programs that run the tests' own machinery with more cases, or print what it finds."""
