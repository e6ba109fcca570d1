"""Files on the disk: reading files of unknown origin, writing a whole file or nothing, and digests."""
