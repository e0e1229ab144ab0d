"""The training itself: batches, losses, the loop, epochs, the export of the result."""
