"""The backends: each a module with the functions of contract.Backend on one chunk of rows."""
