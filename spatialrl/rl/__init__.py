"""Rewards to a loss: selection, advantages, credit, objectives, anchors."""
