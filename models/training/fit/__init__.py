"""Training: batches, losses, the training loop, checkpoints, the export of the result."""
