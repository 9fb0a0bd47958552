"""What happened in a study: the journal, its copy in MLflow, reuse and retention."""
