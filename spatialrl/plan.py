"""Whether a run fits a slice, and how long it would take, without the slice.

  python -m spatialrl.plan --config FILE[:ARG] --topology v5e:4x4 \
    [--json FILE] [--show-sharding] [--config.field=value]

Every program of the run is compiled for the slice, by the compiler that would
compile it there. docs/plan.md says what the numbers hold and what they do not.
"""

import dataclasses
import functools
import json
import pathlib
import sys
import tempfile

import jax
from absl import app, flags, logging

from spatialrl.command import CONFIG, parse
from spatialrl.parallel import chips, estimate, partition
from spatialrl.parallel import mesh as meshes
from spatialrl.train import online, programs, tiny

_TOPOLOGY = flags.DEFINE_string(
    "topology", None, f"One of {', '.join(chips.TOPOLOGIES)}."
)
_JSON = flags.DEFINE_string("json", None, "File for the numbers as JSON.")
_SHARDING = flags.DEFINE_boolean(
    "show-sharding", False, "List where every weight lies; compile nothing."
)

flags.declare_key_flag("config")  # so that --help lists it

SPARE = 1e9  # bytes of a device that a plan leaves to what it does not know
_T5_XXL = 9.5e9  # bytes of T5-XXL's encoder in 16 bits


@dataclasses.dataclass(frozen=True)
class Plan:
  """What was found out about a run on a slice.

  Attributes:
    place: chips.Slice.
    mesh: of its devices.
    images: of an iteration.
    programs: dict from name to estimate.Estimate, in the order they run; if
      one is too large, up to that one.
    too_large: programs.OutOfMemory of that one, or None.
  """

  place: chips.Slice
  mesh: jax.sharding.Mesh
  images: int
  programs: dict
  too_large: programs.OutOfMemory | None = None

  @property
  def spare(self):
    """Bytes of a device that the largest program leaves."""
    if self.too_large:
      return self.place.chip.hbm - self.too_large.wanted
    largest = max(one.hbm for one in self.programs.values())
    return self.place.chip.hbm - largest

  @property
  def fits(self):
    """Whether every program compiles and leaves SPARE."""
    return self.too_large is None and self.spare >= SPARE

  @property
  def seconds(self):
    """Of an iteration, if all collectives hide behind computing."""
    return sum(
        one.calls * max(one.estimated_seconds, one.interconnect_seconds)
        for one in self.programs.values()
    )

  def to_json(self):
    """The plan as a dict of numbers, strings and dicts."""
    keys = (
        "hbm_bytes", "flops", "bytes", "collective_bytes",
        "estimated_seconds", "roofline_seconds",
    )
    return {
        "programs": {
            name: {key: getattr(one, key) for key in keys}
            for name, one in self.programs.items()
        },
        "chip": self.place.name.split(":")[0],
        "chips": self.place.count,
        "fits": self.fits,
    }


def make_plan(config, place, say=lambda line: None):
  """Compiles every program of a run for a slice.

  Args:
    config: of an `online` run.
    place: chips.Slice.
    say: called with the lines about a program as soon as it is compiled.

  Returns:
    Plan.

  Raises:
    ValueError: for a config that could not run; see `online.check`.
  """
  with tempfile.TemporaryDirectory() as folder:
    config = tiny.prepare(config, folder)
    mesh = _mesh(config, place)
    found, too_large = {}, None
    try:
      for name, program in programs.compile_all(config, mesh):
        found[name] = estimate.of(
            program.compiled, place, mesh,
            calls=program.calls, resident=program.resident,
        )
        say("\n".join(describe(name, found[name], place)))
    except programs.OutOfMemory as error:
      too_large = error
    images = programs.images_of(config)
    return Plan(place, mesh, images, found, too_large)


def _mesh(config, place):
  if config.job != "online":
    raise ValueError(f"job is {config.job!r}; planned can be 'online'.")
  mesh = meshes.make_mesh(config.mesh, list(place.devices))
  online.check(config, mesh)
  return mesh


def describe(name, one, place):
  """Lines about one program."""
  gigabytes = {kind: n / 1e9 for kind, n in one.hbm_bytes.items()}
  parts = "  ".join(f"{kind} {n:.3g}" for kind, n in gigabytes.items())
  sent = [
      f"{kind} over {axes or 'one device'} {count / 1e9:.3g}"
      for kind, axes_of_kind in one.collective_bytes.items()
      for axes, count in axes_of_kind.items()
  ]
  share = ""
  if one.roofline_seconds:
    ratio = one.estimated_seconds / one.roofline_seconds
    share = f" {ratio:.3g} of roofline {one.roofline_seconds:.3g};"
  lines = [
      f"{name}, {one.calls} an iteration",
      f"  memory GB   {parts}  = {one.hbm / 1e9:.3g} of"
      f" {place.chip.hbm / 1e9:.4g}",
      f"  work        {one.flops / 1e12:.3g} TFLOP, {one.bytes / 1e9:.3g} GB"
      " through memory",
      f"  received GB {', '.join(sent) or 'nothing'}",
      f"  seconds     {one.estimated_seconds:.3g} computing,{share}"
      f" {one.interconnect_seconds:.3g} on the interconnect",
  ]
  if one.kernel_seconds:
    lines.append(
        f"              of it {one.kernel_seconds:.3g} attention kernels, by"
        " their FLOPs"
    )
  if one.unknown:
    lines.append(f"              without kernels {', '.join(one.unknown)}")
  return lines


def verdict(plan, config):
  """Lines that say whether the run fits, how fast it is, and what would help.

  Args:
    plan: Plan.
    config: it was made for.
  """
  if plan.fits:
    rate = plan.images / plan.seconds
    return [
        f"fits: {_gb(plan.spare)} of a device to spare",
        f"{plan.images} images an iteration in {plan.seconds:.3g} s or more:"
        f" {rate:.3g} images/s, {rate / plan.place.count:.3g} a chip",
    ]
  lines = [f"does not fit: {_gb(plan.spare)} to spare, {_gb(SPARE)} wanted"]
  if plan.too_large:
    lines.append(f"  {plan.too_large} The programs after it are not known.")
  return lines + [f"  {line}" for line in knobs(plan, config)]


def knobs(plan, config):
  """Lines about what saves memory, and how much of it on a device.

  Weights and window are exact; temporaries are taken to follow their rows.
  """
  held, devices = programs.shapes(config, plan.mesh), plan.mesh.size
  lines = []
  if plan.mesh.shape["fsdp"] < devices:
    split = meshes.make_mesh((1, devices, 1), list(plan.mesh.devices.flat))
    saved = held.weight_bytes - programs.shapes(config, split).weight_bytes
    lines.append(f"mesh (1, -1, 1) saves {_gb(saved)} of weights")
  for field, name in (
      ("rollout.chunk", "rollout"),
      ("train.microbatch", "update"),
      *((f"rewards.{n}.batch", f"reward_{n}") for n in held.judges),
  ):
    if name in plan.programs:
      half = plan.programs[name].hbm_bytes["temporaries"] / 2
      lines.append(f"half the {field} saves about {_gb(half)} in {name}")
    elif plan.too_large and plan.too_large.name == name:
      lines.append(f"half the {field} makes {name} smaller")
  if not config.remat:
    lines.append("remat True keeps one layer's activations instead of all")
  lines.append(
      f"a step less in rollout.window saves {_gb(held.step_bytes)}"
  )
  if config.get("text"):
    lines.append(
        "text states are cached; the T5 encoder in memory would take"
        f" {_gb(_T5_XXL / plan.mesh.shape['fsdp'])} more"
    )
  return lines


def _gb(count):
  return f"{count / 1e9:.2f} GB"


def sharding(config, place):
  """Lines that say where every weight lies, the largest share first."""
  with tempfile.TemporaryDirectory() as folder:
    config = tiny.prepare(config, folder)
    mesh = _mesh(config, place)
    held = programs.shapes(config, mesh)
  trees = {"base": held.base, "state": held.state}
  trees |= {name: judge[1] for name, judge in held.judges.items()}
  for title, tree in trees.items():
    family = "qwen_vl" if title in held.judges else held.policy.family
    rows = partition.table(mesh, family, tree)
    total = sum(row.bytes for row in rows)
    yield f"{title}: {_gb(total)} of a device"
    for row in sorted(rows, key=lambda row: -row.bytes):
      yield f"  {row.bytes:>12} {row.path} {row.shape} {row.spec}"


def main(argv):
  """Plans, prints, and says by its exit code whether the run fits."""
  if len(argv) > 1:
    raise app.UsageError(f"unexpected arguments {argv[1:]}")
  config = CONFIG.value
  try:
    folder = pathlib.Path(_JSON.value or ".").parent
    if not folder.is_dir():
      raise ValueError(f"--json is {_JSON.value!r}; {folder} is no folder.")
    place = chips.find(_TOPOLOGY.value)
    if _SHARDING.value:
      print("\n".join(sharding(config, place)))
      return 0
    for line in place.notes():
      print(line)
    plan = make_plan(config, place, say=functools.partial(print, flush=True))
    print("\n".join(verdict(plan, config)))
    if _JSON.value:
      with open(_JSON.value, "w") as file:
        json.dump(plan.to_json(), file, indent=2)
  except (ValueError, OSError, ImportError) as error:
    logging.debug("the error's origin", exc_info=True)
    print(f"error: {error}", file=sys.stderr)
    return 1
  return 0 if plan.fits else 2


def cli():
  """Entry point: nothing here runs on an accelerator."""
  flags.mark_flag_as_required("topology")
  jax.config.update("jax_platforms", "cpu")
  jax.config.update("jax_num_cpu_devices", chips.MOST_GPUS)
  app.run(main, flags_parser=parse)


if __name__ == "__main__":
  cli()
