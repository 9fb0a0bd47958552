"""Image captioners: a CoCa of open_clip with caches, and the image-to-text models of transformers."""
