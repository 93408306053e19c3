"""Benchmarks over images; nothing here is ever a training signal by default."""
