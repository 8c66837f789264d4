"""Trained reward models on conversations, for users of an artifact; they live in `posttrain.rewards.scorers`."""

from posttrain.rewards.scorers import RewardScorer, StepScorer, load_process_reward_model, load_reward_model

__all__ = ["RewardScorer", "StepScorer", "load_process_reward_model", "load_reward_model"]
