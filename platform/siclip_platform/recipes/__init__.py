"""Recipes: everything that determines what a training computes, validated; found, read and merged."""
