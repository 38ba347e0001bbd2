"""What the objectives are put together from.

checks.py   of parameters            pairs.py       reductions, ratios to the reference, margins
shapes.py   functions of a margin    imitation.py   the nll of the chosen response
"""
