"""The machinery of one pool: connections, manifest, provisioning, agents, resizing, removal."""
