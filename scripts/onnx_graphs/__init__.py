"""ONNX graphs that torch's exporter cannot create, written operator by operator."""
