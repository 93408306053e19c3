"""tfds builders of the embedded world; importing this registers them."""

from spatialrl.scenes.datasets.spatial_reward import SpatialReward
from spatialrl.scenes.datasets.spatial_scenes import SpatialScenes

__all__ = ["SpatialReward", "SpatialScenes"]
