"""Measurements. Every one checks correctness first; see README.md, "Benchmarks".

bench_head, bench_memory, bench_scaling     the loss head: time, peak memory, error; against one size after another
bench_step      whole training steps            bench_packing  padded, packed and shared rows
accuracy        errors against float64          bench_products, ceilings  what the library's products reach here
suite           make bench: all of them here    guard          make bench-check: ratios against committed ones
test_head.py    the head under pytest-benchmark

cases, small_lm  workloads      providers/  who is measured       measure          rounds, peaks
records          one result     options     the flags they share  measured, sweep  from a workload to records
steps/           of bench_step  report/     docs/performance.md   parts            commands under limits
plan/            predicted memory and time of large runs          gpu/             make gpu-check, gpu-tune, gpu-step
"""
