"""A fine-tuned model for others' software: ONNX with its preprocessing, and a MONAI bundle."""
