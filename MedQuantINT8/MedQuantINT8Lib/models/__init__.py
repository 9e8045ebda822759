"""What a model is on disk: its package, its description (model.json), its ONNX graph and that graph's layers and Q/DQ nodes."""
