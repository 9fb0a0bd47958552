"""Model diagnostics: its structure and cost, the similarity of its attention blocks, and what they could share."""

from siclip.diagnostics.describe import describe_model
from siclip.diagnostics.divergence import AttentionDivergence, attention_divergence, jensen_shannon_divergence
from siclip.diagnostics.proposal import propose_sharing

__all__ = [
    "AttentionDivergence",
    "attention_divergence",
    "describe_model",
    "jensen_shannon_divergence",
    "propose_sharing",
]
