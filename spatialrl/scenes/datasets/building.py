"""What the two builders share: splits, numbering, file format."""

import tensorflow_datasets as tfds

SPLITS = ("train", "validation", "held_out")
_BATCH = 64  # examples drawn at once; part of what makes them reproducible
_STEPS = 1_000_000  # steps of the generators kept apart for each split


def split_generators(builder):
  """The value of a builder's `_split_generators`, one entry per split."""
  examples = builder.builder_config.examples
  if set(examples) != set(SPLITS):
    raise ValueError(
        f"examples is {examples}; it has to number the splits {SPLITS}."
    )
  return {split: builder._generate_examples(split) for split in SPLITS}


def draw(generate, split, examples):
  """Calls a batch generator until a split has its examples.

  Args:
    generate: function (step, batch, held_out) -> list of dicts.
    split: str, one of SPLITS.
    examples: int, how many the split has.

  Yields:
    (int key, dict) as tfds wants them.
  """
  first = SPLITS.index(split) * _STEPS
  for start in range(0, examples, _BATCH):
    step = first + start // _BATCH
    made = generate(step, _BATCH, split == "held_out")
    yield from enumerate(made[: examples - start], start)


def info(builder, description, features):
  """DatasetInfo stored as array_record, which is read without TensorFlow."""
  made = tfds.core.DatasetInfo(
      builder=builder,
      description=description,
      features=tfds.features.FeaturesDict(features),
  )
  made.set_file_format("array_record")
  return made
