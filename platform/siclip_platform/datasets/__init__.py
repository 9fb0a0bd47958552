"""Datasets: one schema, Parquet shards listed by a manifest, imports, captions and embeddings beside a dataset.

This module imports nothing. `siclip_platform.datasets.manifest` opens a dataset, `.schema` validates its tables,
`.importing` reads foreign sources, `.derived` writes captions and embeddings, `.digits` builds the default dataset.
"""
