"""What is trained: a model, its data, its optimizer and its mesh, in one description."""
