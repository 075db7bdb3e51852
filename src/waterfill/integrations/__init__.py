"""Other libraries that read what waterfill writes; each is imported when it is used, never before."""
