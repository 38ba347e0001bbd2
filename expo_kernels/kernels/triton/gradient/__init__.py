"""What stands around the two products of the gradient: row scales, column sums, and the entries that a rule keeps."""
