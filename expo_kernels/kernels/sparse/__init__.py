"""The stored part of a gradient from a few of the vocabulary's columns (docs/sparsity.md).

draws.py   random numbers that are functions of seed, block and column         totals.py  what is reported, as sums
choice.py  which columns of a block of rows, by either rule                    crowd.py   the loop over blocks
gathered.py  the products of gathered operands                                 rules.py   a rule as scalars

Every backend gives the operations on rows and columns that this is made of (crowd.Parts).
"""
