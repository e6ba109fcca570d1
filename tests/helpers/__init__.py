"""What several tests share: tiny models, files of every kind, faults, servers."""
