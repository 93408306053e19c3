"""What keeps images of one prompt file or weights from being another's."""

import pytest
from ml_collections import ConfigDict

from spatialrl.train.sample_images import check_labels, labels_of


def test_images_of_other_prompts_or_weights_are_not_gone_on_with(tmp_path):
  weights = tmp_path / "trained.safetensors"
  weights.write_bytes(b"first")
  config = ConfigDict({"trained": str(weights)})
  records = [{"prompt": "a dog"}, {"prompt": "a cat"}]
  labels = labels_of(tmp_path, config, records)
  check_labels(tmp_path, labels)  # There is nothing yet.
  for file, text in labels.items():
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)
  check_labels(tmp_path, labels_of(tmp_path, config, records))
  for changed in ([records[0], {"prompt": "a hat"}], records[:1]):
    with pytest.raises(ValueError, match="00001/metadata.*other prompts"):
      check_labels(tmp_path, labels_of(tmp_path, config, changed))
  weights.write_bytes(b"second")
  with pytest.raises(ValueError, match=r"trained\.sha256 is"):
    check_labels(tmp_path, labels_of(tmp_path, config, records))
