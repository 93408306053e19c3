"""Hugging Face folders in and out of our parameter trees."""
