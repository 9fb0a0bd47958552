"""A search: Ray Tune runs trials that a policy suggests, and a journal keeps what happened."""
