"""Recipes: everything that decides what a training computes, validated; presets that ship."""
