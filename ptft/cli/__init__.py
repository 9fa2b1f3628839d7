"""The commands: one verb or a few a file, prediction, import and export."""
