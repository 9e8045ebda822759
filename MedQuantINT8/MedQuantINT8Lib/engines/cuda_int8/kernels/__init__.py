"""CUDA C of every step."""
