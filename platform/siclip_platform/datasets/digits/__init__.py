"""Digit scenes: the embedded default dataset, drawn and captioned by a seed."""
