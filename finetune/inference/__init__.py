"""How a trained model sees whole scans, and what becomes of its scores."""
