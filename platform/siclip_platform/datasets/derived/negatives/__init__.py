"""False captions of a dataset's captions: near-miss texts made by rules, stored beside the data."""
