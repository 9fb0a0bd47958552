"""What is made from a dataset and lies beside it: captions, embeddings, and the stages that make them."""
