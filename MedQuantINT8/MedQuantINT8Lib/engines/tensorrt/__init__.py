"""TensorRT, and TensorRT for RTX: real INT8 on NVIDIA GPUs by NVIDIA's own libraries."""
