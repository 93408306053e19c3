"""Numbers of a config that must lie in a range."""

CHECKPOINT = ("checkpoint.every", "checkpoint.keep_last")  # at least 1
OPTIMIZER = (  # at least 0
    "optimizer.learning_rate", "optimizer.warmup", "optimizer.weight_decay",
)


def at_least(config, least, fields):
  """Refuses fields that are too small.

  Args:
    config: ConfigDict.
    least: the smallest value that is allowed.
    fields: names such as "eval.batch"; those that the config does not have are
      passed over, since jobs and slots share this list.

  Raises:
    ValueError: naming the first such field, its value and the least one.
  """
  for field, value in _present(config, fields):
    if not value >= least:
      raise ValueError(f"{field} is {value}; it must be at least {least}.")


def decay(config, fields):
  """Refuses factors of moving averages outside of [0, 1); see `at_least`."""
  for field, value in _present(config, fields):
    if not 0 <= value < 1:
      raise ValueError(f"{field} is {value}; allowed are 0 to below 1.")


def positive(config, fields):
  """Refuses fields that are not above 0; see `at_least`."""
  for field, value in _present(config, fields):
    if not value > 0:
      raise ValueError(f"{field} is {value}; it must be above 0.")


def _present(config, fields):
  """(field, value) of the fields that a config has."""
  for field in fields:
    *parents, leaf = field.split(".")
    section = config
    for parent in parents:
      section = section.get(parent, {})
    if leaf in section:
      yield field, section[leaf]
