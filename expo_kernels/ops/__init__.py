"""The differentiable operations over a backend: the chunk loop, and the autograd functions that carry its gradients.

problem.py     what is computed, on which operands      chunks.py      the backend on ranges of tokens
evaluate.py    objective -> loss and coefficients       preference.py  gradient in forward: loss, dh, dw at once
logprob.py     token and sequence log-probs for any objective outside, and without a gradient
"""
