"""Recorded curves replayed through a search's policies, at no cost."""
