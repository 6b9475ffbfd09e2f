"""What the commands do, without knowing that there is a command line."""
