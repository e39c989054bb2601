"""What vision transformers of several families have of their own, and how images enter them."""
