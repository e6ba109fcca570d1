"""The model card of an output, and the results of an evaluation in it and in the manifest."""
