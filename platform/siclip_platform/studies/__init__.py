"""What a user starts: options, study files, a study with its teacher, best and control, ablations."""
