"""Synthetic captions of a dataset by CoCa (arXiv 2205.01917)."""
