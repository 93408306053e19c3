"""Sampling times t_0 = 1 > ... > t_K = 0 of the published pipelines."""

import math

import numpy as np

_TRAIN_STEPS = 1000  # resolution of the stored diffusers table


def _shift(t, shift):
  """Pushes times towards noise: s t / (1 + (s - 1) t)."""
  return shift * t / (1 + (shift - 1) * t)


def _finish(t):
  """Appends the final 0; f64[K] -> f32[K+1]."""
  return np.append(t, 0.0).astype(np.float32)


def _check(steps, shift=1.0):
  if steps < 1:
    raise ValueError(f"steps is {steps}, it must be at least 1.")
  if shift <= 0:
    raise ValueError(f"shift is {shift}, it must be positive.")


def sd3(steps, *, shift=3.0):
  """Times of the Stable Diffusion 3 pipeline in diffusers.

  The shift acts twice there: the scheduler builds its table of 1000 times
  already shifted, then spaces K times evenly between the ends of that table
  and shifts them again. The last time before 0 is therefore small and does
  not depend on K (0.0089 for shift 3).

  Args:
    steps: number of sampling steps K.
    shift: the scheduler's static shift, 1 leaves the times even.

  Returns:
    f32[K+1], from 1 to 0.

  Raises:
    ValueError: steps below 1 or shift not positive.

  Source: diffusers FlowMatchEulerDiscreteScheduler.set_timesteps.
  """
  _check(steps, shift)
  last = _shift(1 / _TRAIN_STEPS, shift)
  return _finish(_shift(np.linspace(1.0, last, steps), shift))


def flux(steps, *, tokens):
  """Times of the FLUX.1-dev pipeline, shifted by the size of the image.

  t = e^mu / (e^mu + 1/s - 1) on s = linspace(1, 1/K, K), where mu is linear
  in the number of image tokens: 0.5 at 256 and 1.15 at 4096, extrapolated
  beyond.

  Args:
    steps: number of sampling steps K.
    tokens: image tokens the transformer sees, 1024 for 512 x 512 pixels.

  Returns:
    f32[K+1], from 1 to 0.

  Raises:
    ValueError: steps below 1.

  Source: diffusers FluxPipeline, `calculate_shift`.
  """
  _check(steps)
  mu = 0.5 + (1.15 - 0.5) * (tokens - 256) / (4096 - 256)
  return _finish(_shift(np.linspace(1.0, 1 / steps, steps), math.exp(mu)))


def shifted(steps, *, shift):
  """Even times, shifted once (DanceGRPO, arXiv:2505.07818, shift 3).

  Args:
    steps: number of sampling steps K.
    shift: 1 leaves the times even, larger spends more steps near noise.

  Returns:
    f32[K+1], from 1 to 0.

  Raises:
    ValueError: steps below 1 or shift not positive.
  """
  _check(steps, shift)
  even = np.linspace(1.0, 0.0, steps + 1)
  return _shift(even, shift).astype(np.float32)


SCHEDULES = {"sd3": sd3, "flux": flux, "shifted": shifted}
