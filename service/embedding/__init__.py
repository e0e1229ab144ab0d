"""Serving embeddings: texts are tokenized, batched and run on the device's thread."""
