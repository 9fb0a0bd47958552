"""The rehearsal of a whole job: a few hundred pairs of the real source go through every stage of it."""
