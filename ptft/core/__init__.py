"""What every wing stands on: errors, names of parameters, configs, records, devices, checkpoints."""
