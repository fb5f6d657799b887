"""One VM sends as fast as it can; the others must not feel it."""
