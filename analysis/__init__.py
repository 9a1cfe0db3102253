"""Reads run folders and makes the paper's tables, figures, claims and report; never trains."""
