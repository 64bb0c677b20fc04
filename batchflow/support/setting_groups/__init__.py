"""Groups of settings that `batchflow.settings` puts together with the others."""
