"""An INT8 engine of our own for NVIDIA GPUs: the driver and cuda-python with NVRTC are all it needs.

``reading`` turns an ONNX network into few kinds of nodes, ``planner`` those into fused steps over channels-last buffers (``plan``),
``reference`` runs a plan in NumPy; ``tiling``, the ``_source`` files, ``program`` and ``network`` run it on the GPU; ``backend`` is the door for all others.
"""
