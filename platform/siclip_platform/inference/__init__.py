"""A trained model at work: embeddings of one's own images and texts, a search among them, an MLflow model."""
