"""Schedules, transitions and rollouts of flow matching; no networks here.

Time t runs from 1 (noise) to 0 (image): x_t = (1 - t) x0 + t eps, and the
velocity is v = eps - x0. Everything in this room is float32.
"""
