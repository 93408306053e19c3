"""What FLUX.1 and SD3.5 take of TPU slices, by the planner."""
