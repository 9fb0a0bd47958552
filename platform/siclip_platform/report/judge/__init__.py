"""What the figures of a study say, with statistics."""
