"""Looking after a dataset: verify, inspect, push, contact sheets, summaries."""
