"""A plan on the GPU: compiled, tuned, given memory, and launched."""
