"""Ray: connecting, submitting jobs, laying out resources, and every patch of Ray."""
