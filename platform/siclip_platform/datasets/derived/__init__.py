"""Captions and embeddings of a dataset, computed on Ray Data in stages that resume."""
