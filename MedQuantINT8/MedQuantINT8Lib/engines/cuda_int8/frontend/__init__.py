"""An ONNX network as the few kinds of nodes that a plan is made of."""
