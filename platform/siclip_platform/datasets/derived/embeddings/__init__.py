"""Teacher embeddings of a dataset, computed before training."""
