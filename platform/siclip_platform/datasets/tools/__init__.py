"""Tools for datasets: verify, inspect, push, contact sheets, summaries."""
