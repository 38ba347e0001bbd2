"""Predicted memory and time of a training step: python -m benchmarks.plan --model llama3-8b --gpus 8 --gpu a100-40g

traced.py    the body on fake tensors       job.py       what a rank trains (tools/models.py has the shapes)
cards.py     what a card attains            heads.py     naive, Liger, TRL, ours
peak.py      memory by part                 seconds.py   time by part
longest.py   the longest pair that fits     tables.py    8B and 70B on 8 to 512 GPUs
validate.py  against small runs on this CPU
"""
