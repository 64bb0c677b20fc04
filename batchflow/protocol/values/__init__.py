"""How arguments and results travel that JSON cannot hold: `encoding` has the rules. Pure."""
