"""Teacher embeddings of a dataset, computed ahead and read in training."""
