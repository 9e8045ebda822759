"""How a convolution is cut into phases, taps and tiles, and in which order its weights are read."""
