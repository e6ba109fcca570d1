"""Export: an edit as a checkpoint, one folder for each format."""
