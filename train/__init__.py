"""The trainer: preference training of language models with the fused losses, on DeepSpeed ZeRO-3."""
