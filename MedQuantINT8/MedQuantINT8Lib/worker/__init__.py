"""A resident process that keeps engines loaded, and its callers' side."""
