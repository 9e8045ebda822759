"""A plan in NumPy, with the integers of the GPU."""
