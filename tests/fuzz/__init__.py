"""Structure-aware fuzzing of the readers: parts of files and directories are changed, and checksums mended after."""
