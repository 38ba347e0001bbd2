"""What bench_step is made of.

case.py  the model and the pairs       providers.py  who trains on them       worker.py  each in a process of its own
"""
