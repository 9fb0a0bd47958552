"""Datasets: one schema, Parquet shards beside a manifest, and the embedded default (digit scenes).

Nothing is imported here: `siclip_platform.datasets.manifest` opens a dataset, `.schema` guards its door,
`.digits` builds the default with Ray Data.
"""
