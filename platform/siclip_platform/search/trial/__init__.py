"""What runs in a trial's process: one training per seed."""
