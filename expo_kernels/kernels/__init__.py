"""The backends: each a package whose BACKEND has the functions of contract.Backend, on one chunk of rows."""
