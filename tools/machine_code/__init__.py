"""What the Triton kernels compile to, without a GPU: registers, spills, shared memory, instructions, by architecture.

    python -m tools.machine_code                      every card, every kernel: a table, and what breaks a gate
    python -m tools.machine_code --cards sm_90 --quick
    python -m tools.machine_code --write              renews the table in docs/kernels.md

compiling.py  our own launchers on tensors without memory, so that Triton specialises as at run time
launches.py   what is launched: each kernel at each shipped tile and variant      reading.py  machine code -> numbers
gates.py      what the numbers must be                                            report.py   the table
"""
