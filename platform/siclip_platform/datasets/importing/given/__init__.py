"""Captions that others have generated → a caption set beside a dataset, matched by a key."""
