"""JSON lines and cells -> Markdown, PNG, one self-contained HTML page, CSV."""
