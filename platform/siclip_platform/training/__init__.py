"""One recipe to one model: building it, one sequence that runs it, Ray Train's driver and worker."""
