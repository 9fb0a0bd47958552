"""Image-caption pairs of others into one schema: sources, a ledger of every rejected row, duplicates."""
