"""Teacher, student, learn-to-weight attention and losses: torch in, torch out."""
