"""Hidden states -> log-probs and E'. scoring.py has the two routes; the others are their kernels."""
