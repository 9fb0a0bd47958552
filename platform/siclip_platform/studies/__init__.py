"""What a user starts: options, study files, a search with its teacher, best and control, ablations."""
