"""Train one recipe to one model: build it, run it, here or with Ray Train."""
