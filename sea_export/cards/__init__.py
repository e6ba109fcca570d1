"""What an output says about itself: the model card and the manifest's evaluation."""
