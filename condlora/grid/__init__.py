"""The cells of a grid: composed, listed, checked before the start."""
