"""What happened in a study: the journal, its copy in MLflow, reuse of finished trainings, and retention."""
