"""Students, detectors and graphs on disk: written atomically, and never pickled."""
