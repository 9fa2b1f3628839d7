"""Records -> arrays: text, with its tokenizer."""
