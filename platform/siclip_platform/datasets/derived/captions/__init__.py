"""Synthetic captions of a dataset, written by CoCa (arXiv 2205.01917)."""
