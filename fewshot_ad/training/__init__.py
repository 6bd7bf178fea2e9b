"""Episodes, the training loop, and the trained students."""
