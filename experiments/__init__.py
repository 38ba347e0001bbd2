"""The paper's experiments, and the same questions on a small transformer: python experiments/synthetic.py."""
