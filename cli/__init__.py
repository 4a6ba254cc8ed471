"""What the user types in a shell. Installed as the package zmesh_cli."""
