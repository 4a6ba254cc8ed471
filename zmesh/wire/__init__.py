"""The words two processes may say to each other."""
