"""Rewards of whole sequences, and what policy gradients make of them: RL + GKD, the paper's Eq. 5."""
