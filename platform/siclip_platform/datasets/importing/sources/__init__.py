"""Sources of an import: every layout is cut into parts, one per task, that yield samples of one form.

`find.find_source` cuts a source into parts, `part.read_samples` yields the samples of a part in order.
"""
