"""Fine-tuning of embedding models: training pairs from a codebase, training, verification."""
