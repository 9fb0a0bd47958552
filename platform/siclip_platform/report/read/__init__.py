"""Read studies and runs from an MLflow tracking store."""
