"""What runs inside of the sandbox: only the standard library, imported before the file system is closed."""
