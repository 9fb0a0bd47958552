"""What runs inside a trial: its seeds, each a training of its own."""
