"""One sampling step as a Gaussian: its mean, its spread, its log-density.

This is the only file that knows the sampler. Sampling draws from what it
returns and scoring evaluates the same thing.

Notation: x_t = (1 - t) x0 + t eps, v = eps - x0, t' = t_next, D = t - t' > 0.
One-step estimates: x0h = x - t v (image), x1h = x + (1 - t) v (noise);
the score is -x1h / t. t and t' are f32[], or f32[B, 1, 1, 1] when the images
of a batch sit at different steps.
"""

import math

import jax
import jax.numpy as jnp

from spatialrl import records
from spatialrl.models.attention import KEPT


def _check(name, value, high=math.inf):
  if not 0 <= value <= high:
    raise ValueError(f"{name} is {value}, it must lie in [0, {high:g}].")


def ode(v, x, t, t_next):
  """Deterministic Euler step, m = x - D v.

  Args:
    v: f32[B, h, w, C] velocity at (x, t).
    x: f32[B, h, w, C] current state.
    t: current time, f32[] or f32[B, 1, 1, 1].
    t_next: next time, smaller, same shape as t.

  Returns:
    (mean f32[B, h, w, C], std of t's shape, 0).
  """
  return x + v * (t_next - t), jnp.zeros_like(t)


def sde(v, x, t, t_next, g):
  """Euler-Maruyama step of the SDE with diffusion g: m = x - D v + g^2 s D/2.

  s is the score. Any g leaves the marginals of the flow unchanged in the
  limit of small steps.
  """
  dt = t_next - t
  score = -(x + (1 - t) * v) / t
  mean = x + (v - 0.5 * g**2 * score) * dt
  return mean, g * jnp.sqrt(-dt)


def flow_sde(v, x, t, t_next, *, noise_level):
  """Flow-GRPO step: the SDE with g = a sqrt(t / (1 - t)).

  At t = 1, where g is infinite, the public code puts t' for the t of the
  denominator; the first step's std is then exactly a if it starts at 1.

  Args:
    v: f32[B, h, w, C] velocity at (x, t).
    x: f32[B, h, w, C] current state.
    t: current time, f32[] or f32[B, 1, 1, 1].
    t_next: next time, smaller, same shape as t.
    noise_level: a >= 0; 0.7 in the paper, 0 is the ODE.

  Returns:
    (mean f32[B, h, w, C], std of t's shape).

  Source: Flow-GRPO, arXiv:2505.05470, eq. 9.
  """
  _check("noise_level", noise_level)
  g = noise_level * jnp.sqrt(t / (1 - jnp.where(t == 1, t_next, t)))
  return sde(v, x, t, t_next, g)


def dance_sde(v, x, t, t_next, *, eta):
  """DanceGRPO step: the SDE with constant g = eta.

  Args:
    v: f32[B, h, w, C] velocity at (x, t).
    x: f32[B, h, w, C] current state.
    t: current time, f32[] or f32[B, 1, 1, 1].
    t_next: next time, smaller, same shape as t.
    eta: diffusion coefficient >= 0; 0.3 in the paper, 0 is the ODE.

  Returns:
    (mean f32[B, h, w, C], std of t's shape).

  Source: DanceGRPO, arXiv:2505.07818.
  """
  _check("eta", eta)
  return sde(v, x, t, t_next, eta)


def cosine_sde(v, x, t, t_next, *, eta_max, eta_min=0.0):
  r"""HiCoGen step: the SDE with noise that decays along sampling.

  $g = \eta_{min} + (\eta_{max} - \eta_{min}) (1 + \cos(\pi (1 - t))) / 2$: all
  of it at t = 1, none but `eta_min` at t = 0. For a fixed budget
  $\int g^2 dt$ the paper shows that early noise gives the most varied images,
  under linearisation. Read in a note on the paper, not in the paper.

  Args:
    v: f32[B, h, w, C] velocity at (x, t).
    x: f32[B, h, w, C] current state.
    t: current time, f32[] or f32[B, 1, 1, 1].
    t_next: next time, smaller, same shape as t.
    eta_max: diffusion coefficient at t = 1, >= eta_min.
    eta_min: diffusion coefficient at t = 0, >= 0.

  Returns:
    (mean f32[B, h, w, C], std of t's shape).

  Source: HiCoGen, arXiv:2511.19965.
  """
  _check("eta_min", eta_min)
  _check("eta_max - eta_min", eta_max - eta_min)
  decay = 0.5 * (1.0 + jnp.cos(math.pi * (1.0 - t)))
  return sde(v, x, t, t_next, eta_min + (eta_max - eta_min) * decay)


def cps(v, x, t, t_next, *, noise_level):
  """Coefficient-preserving step: the total noise after it is exactly t'.

    m = (1 - t') x0h + t' cos(a pi/2) x1h,   std = t' sin(a pi/2)

  The step to t' = 0 has std 0 and returns x0h, whatever a.

  Args:
    v: f32[B, h, w, C] velocity at (x, t).
    x: f32[B, h, w, C] current state.
    t: current time, f32[] or f32[B, 1, 1, 1].
    t_next: next time, smaller, same shape as t.
    noise_level: a in [0, 1]; 0.8 in the paper, 0 is the ODE, 1 keeps nothing
      of the noise in x.

  Returns:
    (mean f32[B, h, w, C], std of t's shape).

  Source: Flow-CPS, arXiv:2509.05952.
  """
  _check("noise_level", noise_level, 1)
  angle = noise_level * math.pi / 2
  x0h = x - t * v
  x1h = x + (1 - t) * v
  mean = (1 - t_next) * x0h + math.cos(angle) * t_next * x1h
  return mean, math.sin(angle) * t_next


def _channel_mean(x):
  """Mean over channels by halving, f32[..., C] -> f32[...].

  A reduction adds in an order that XLA chooses by the shape of the batch: the
  same image would get one log-prob among the images of a rollout and another
  among the fewer of an update. Here the order is written down.
  """
  channels = x.shape[-1]
  width = 1 << (channels - 1).bit_length()
  x = jnp.pad(x, ((0, 0),) * (x.ndim - 1) + ((0, width - channels),))
  while width > 1:
    width //= 2
    x = x[..., :width] + x[..., width:]
  return x[..., 0] / channels


def gaussian_log_prob(x_next, mean, std):
  """Log-density of N(mean, std^2), averaged over channels.

  Public code averages over dimensions instead of summing; the published clip
  ranges (1e-4 and below) belong to that. The value of an image is the mean
  over its positions.

  Args:
    x_next: f32[B, h, w, C] the state whose density is asked.
    mean: f32[B, h, w, C].
    std: f32[] or f32[B, 1, 1, 1], positive.

  Returns:
    f32[B, h, w].
  """
  z = (x_next - mean) / std
  density = -0.5 * z**2 - jnp.log(std) - 0.5 * math.log(2 * math.pi)
  return _channel_mean(density)


def residual_log_prob(x_next, mean, std):
  """Minus the mean squared residual, the published form for Flow-CPS.

  It lacks 1 / (2 std^2) and the constants: not a density, and exp of a
  difference is not a likelihood ratio. Relative to the density each step is
  weighted by 2 std^2.

  Args:
    x_next: f32[B, h, w, C] the state whose score is asked.
    mean: f32[B, h, w, C].
    std: unused; every entry of the slot takes it.

  Returns:
    f32[B, h, w].

  Source: Flow-CPS, arXiv:2509.05952, public code.
  """
  del std
  return -_channel_mean((x_next - mean) ** 2)


def fenced(f, t, t_next):
  """Makes the bits of f depend on its inputs alone, not on the program around.

  A compiler rounds the same expression differently in a rollout and inside a
  gradient: it contracts a * b + c or reorders a sum as the operations fused
  beside it allow. A policy that has not moved would then get ratios of
  1 +- 1e-7. `optimization_barrier` is no help, XLA:CPU drops it before it
  fuses; but it does not fuse into or out of a conditional, so f runs as a
  branch of one. The condition must be one that the compiler cannot decide:
  times that are constants of the program lose the fence.

  Args:
    f: function of arrays to arrays.
    t: current time, f32[] or f32[B, 1, 1, 1].
    t_next: next time, same shape as t.

  Returns:
    A function like f, but all NaN where time does not decrease.
  """

  def refuse(*args):
    return jax.tree.map(
      lambda y: jnp.full(y.shape, jnp.nan, y.dtype), jax.eval_shape(f, *args)
    )

  return lambda *args: jax.lax.cond(jnp.all(t > t_next), f, refuse, *args)


def repeatable(velocity):
  """Makes a network round the same with its gradient and without.

  As in `fenced`, what the backward pass wants of a GELU or a norm changes how
  the forward pass is fused. Here the backward pass recomputes everything but
  matmuls and tiled attention, so nothing is shared. No matmul runs twice, but
  all their outputs are kept: do not wrap a network that rematerialises its
  layers to save just that memory.

  Args:
    velocity: closure (x f32[B, h, w, C], t f32[B]) -> v.

  Returns:
    The same closure, for `evaluate_step` under a gradient.
  """
  policies = jax.checkpoint_policies
  policy = policies.save_from_both_policies(
    policies.dots_saveable, policies.save_only_these_names(KEPT)
  )
  return jax.checkpoint(velocity, policy=policy)


def propose(velocity, x, t, t_next, *, transition):
  """Asks the network and the transition where the next state lies.

  Args:
    velocity: closure (x f32[B, h, w, C], t f32[B]) -> v, any float dtype.
    x: f32[B, h, w, C] current state.
    t: current time, f32[] or f32[B, 1, 1, 1].
    t_next: next time, smaller, same shape as t.
    transition: an entry of TRANSITIONS with its own settings bound.

  Returns:
    (velocity f32[B, h, w, C], mean f32[B, h, w, C], std of t's shape).
  """
  times = jnp.broadcast_to(jnp.reshape(t, -1), x.shape[:1])
  v = velocity(x, times).astype(jnp.float32)
  return v, *fenced(transition, t, t_next)(v, x, t, t_next)


def evaluate_step(velocity, x, x_next, t, t_next, *, transition, log_prob):
  """Scores a stored step under a policy, as the rollout did.

  For times of shape f32[] and a `repeatable` network in float32, the log-prob
  of an unchanged policy equals the stored one to the last bit, if the matrix
  products round alike for the numbers of rows of the two programs. Otherwise
  it comes within rounding of it. Visit steps with a loop or `lax.scan`: under
  `vmap` over times `fenced` has no effect.

  Args:
    velocity: closure (x f32[B, h, w, C], t f32[B]) -> v, any float dtype.
    x: f32[B, h, w, C] state the step started from.
    x_next: f32[B, h, w, C] state it led to.
    t: time of x, f32[] or f32[B, 1, 1, 1].
    t_next: time of x_next, smaller, same shape as t.
    transition: an entry of TRANSITIONS with its own settings bound.
    log_prob: an entry of LOG_PROBS.

  Returns:
    records.Step; std and interval have the shape of t.
  """
  t, t_next = jnp.asarray(t, jnp.float32), jnp.asarray(t_next, jnp.float32)
  v, mean, std = propose(velocity, x, t, t_next, transition=transition)
  return records.Step(
    velocity=v,
    mean=mean,
    log_prob=fenced(log_prob, t, t_next)(x_next, mean, std),
    std=std,
    interval=t - t_next,
  )


TRANSITIONS = {
  "ode": ode,
  "flow_sde": flow_sde,
  "dance_sde": dance_sde,
  "cosine_sde": cosine_sde,
  "cps": cps,
}
LOG_PROBS = {"gaussian": gaussian_log_prob, "residual": residual_log_prob}
NOISELESS_AT_ZERO = ("ode", "cps")  # std is 0 when t_next is 0
