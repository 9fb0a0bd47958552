"""Recipes: everything that determines what a training computes, validated; and the presets."""
