"""Where image–caption pairs come from: every layout as pieces that one task reads, and samples of one form.

`find.find_source` cuts a source into pieces, `piece.read_samples` yields a piece's samples in order.
"""
