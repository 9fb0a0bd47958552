"""Where image–caption pairs come from: every layout as pieces that one task reads, and samples of one form.

`find.find_pieces` cuts a source into pieces, `read.read_samples` yields a piece's samples in order.
"""
