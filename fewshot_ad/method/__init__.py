"""The method, from teacher to score; input and output are torch tensors."""
