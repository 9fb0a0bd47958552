"""Use a trained model: embed images and texts, search them, write an MLflow model and a model card."""
