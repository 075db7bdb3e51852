"""Files and directories without PyTorch: read, written whole or not at all, decoded into arrays of NumPy."""
