"""How results and progress are shown: HTML for notebooks, lines for terminals and logs."""
