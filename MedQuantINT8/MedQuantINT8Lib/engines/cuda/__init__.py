"""What every engine on an NVIDIA GPU needs: the driver, memory and streams, compiled kernels, graphs, pipelines."""
