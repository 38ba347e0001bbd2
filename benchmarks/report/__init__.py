"""Results -> docs/performance.md with its plots, and the README's one table: python -m benchmarks.report

results.py    a results file: read, written, named after its device; the newest of each device
shape.py      records put in groups and series; slopes
numbers.py    figures as they are printed
tables.py     the tables of a device's section         whole_steps.py  those of bench_step
targets.py    what was promised, met or not, with the gap
plots.py      time, memory, error against speed, the roofline
page.py       the page; readme.py the table of the README
"""
