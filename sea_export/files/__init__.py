"""Files on the disk: read as somebody else's, written as a whole or not at all, and digested."""
