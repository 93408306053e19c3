"""Judges of images, and how several judges become one reward."""
