"""Fine-tuning of embedding models: pairs from a codebase, training, verification. Knows no bus and no job queue."""
