"""Anything a user holds -> tensors, and changed views of them."""
