"""A slot's config either binds its entry or says what is wrong with it."""

import pytest
from ml_collections import config_dict

from spatialrl.flow.transition import TRANSITIONS
from spatialrl.rl.objectives import OBJECTIVES
from spatialrl.train.slots import bind


def plain(x):
  return x


def scaled(x, *, factor, offset=0.0):
  return factor * x + offset


def shifted(x, *, shift):
  return x + shift


TABLE = {"plain": plain, "scaled": scaled, "shifted": shifted}


def call(value, **fields):
  return bind(TABLE, config_dict.ConfigDict(fields), "slot")(value)


def test_settings_of_the_entry_are_bound():
  assert call(3.0, name="plain") == 3.0
  assert call(3.0, name="scaled", factor=2.0) == 6.0
  assert call(3.0, name="scaled", factor=2.0, offset=1.0) == 7.0


def test_settings_of_the_other_entries_may_stay():
  fields = {"factor": 2.0, "shift": 5.0}
  assert call(3.0, name="shifted", **fields) == 8.0
  assert call(3.0, name="scaled", **fields) == 6.0
  assert call(3.0, name="plain", **fields) == 3.0


@pytest.mark.parametrize(
  ("fields", "words"),
  [
    ({"name": "best"}, ("slot.name is 'best'", "plain", "scaled", "shifted")),
    ({"name": "plain", "factr": 1.0}, ("slot.factr", "factor", "shift")),
    ({"name": "scaled"}, ("slot.factor is missing", "'scaled'")),
    ({"name": "scaled", "offset": 1.0}, ("slot.factor is missing",)),
    ({"name": "scaled", "factor": 1.0, "x": 2.0}, ("slot.x",)),
  ],
)
def test_what_cannot_be_bound_is_one_sentence(fields, words):
  with pytest.raises(ValueError) as caught:
    call(3.0, **fields)
  message = str(caught.value)
  assert all(word in message for word in words), message
  assert "\n" not in message and message.endswith(".")


def test_a_known_slot_switches_by_its_name_alone():
  fields = config_dict.ConfigDict(
    {"name": "cps", "noise_level": 0.8, "eta": 0.3, "eta_max": 0.6}
  )
  for name in TRANSITIONS:
    fields.name = name
    assert bind(TRANSITIONS, fields, "transition").func is TRANSITIONS[name]
  guard = {"name": "ppo_guard", "clip_range": 2e-6, "adv_clip": 5.0}
  with pytest.raises(ValueError, match=r"objective.divide_by_interval"):
    bind(OBJECTIVES, config_dict.ConfigDict(guard), "objective")
