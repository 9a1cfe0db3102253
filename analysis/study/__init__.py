"""Which runs belong together, what was published, and what may be compared."""
