"""Small worlds with exact answers, shared by the demo, the experiments, the benchmarks and the tests."""
