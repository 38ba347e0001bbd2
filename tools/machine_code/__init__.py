"""What the Triton kernels compile to, without a GPU: registers, spills, shared memory, instructions, by architecture.

    python -m tools.machine_code                      every card, every kernel: a table, and what breaks a gate
    python -m tools.machine_code --cards sm_90 --quick
    python -m tools.machine_code --write              renews the table in docs/kernels.md

    python -m benchmarks.machine_code                 the main loops of the products, and what a head should take

compiling.py  our own launchers on tensors without memory, so that Triton specialises as at run time
launches.py   what is launched: each kernel at each shipped tile and variant      reading.py  machine code -> numbers
loops.py      the main loop, by class of instruction      occupancy.py  programs a multiprocessor, and those meant
gates.py      what the numbers must be                    report.py     the tables
predicted.py  time from products, bytes and launches
"""
