"""From nodes to fused steps over channels-last buffers of INT8 and FP16."""
