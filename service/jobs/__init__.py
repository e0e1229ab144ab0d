"""Fine-tuning as jobs: how they are queued and done, and how what came of one gets to every worker."""
