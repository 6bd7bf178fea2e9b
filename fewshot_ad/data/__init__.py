"""Images in any accepted form -> tensors, and augmented views of these."""
