"""Log-probs -> sequence sums, and in one launch EXPO's loss and coefficients."""
