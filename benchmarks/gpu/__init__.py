"""What a machine with a GPU is for: one command each, and none of them stops at the first thing that fails.

    python -m benchmarks.gpu.check     correctness, the card's ceilings, the head, its peers: within ten minutes
    python -m benchmarks.gpu.tune      measures tiles on this card, writes its row of the table, then the head again
    python -m benchmarks.gpu.step      whole training steps: an 8B Llama shape, and the trainer against TRL's

results.py     what the parts (benchmarks/parts.py) measured -> benchmarks/results
ceilings.py    copies and products of this card
heads.py       bench_head at several sizes in one process
sanitizer.py   compute-sanitizer, where it is
whole_step.py  one head in a whole step: time, peak, the longest pair

They want a python3 that has torch and Triton, nothing else of ours: what is missing is reported as missing.
"""
