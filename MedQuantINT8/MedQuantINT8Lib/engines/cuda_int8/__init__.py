"""An INT8 engine of our own for NVIDIA GPUs: the driver and cuda-python with NVRTC are all it needs.

``frontend`` turns an ONNX network into few kinds of nodes, ``plan`` makes those fused steps over channels-last buffers,
``reference`` runs a plan in NumPy; ``tiling``, ``kernels`` and ``runtime`` run it on the GPU; ``backend`` is the door for all others.
"""
