"""Which setting comes next and which trial stops: searchers, samplers, schedulers, populations."""
