"""What an edit does and costs: the strength within a budget, damage on unrelated text, held-out demonstrations."""
