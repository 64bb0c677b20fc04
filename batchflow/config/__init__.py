"""Reading settings: configuration files, environment variables, project files, old credential files."""
