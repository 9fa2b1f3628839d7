"""The benchmark: what runs (`protocol`), running it (`runner`), and what the numbers say (`stats`)."""
