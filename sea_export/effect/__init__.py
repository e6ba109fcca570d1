"""What an edit does and costs: damage on unrelated text, the strength within a budget, and held-out demonstrations."""
