"""Episodes, the one training loop, and the students that come out."""
