"""Students, detectors and graphs on disk: whole or not at all, and no pickle."""
