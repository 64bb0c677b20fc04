"""What client and agent agree on: messages, documents, names, bundles, packing. Pure: no I/O, no clock."""
