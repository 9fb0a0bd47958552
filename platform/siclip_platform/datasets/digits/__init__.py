"""Digit scenes, the default dataset: glyphs, scenes, their composition into images, and the build."""
