"""Reading a study from its MLflow store."""
