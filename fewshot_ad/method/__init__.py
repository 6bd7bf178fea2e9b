"""The method, from teacher to score: torch in, torch out."""
