"""From requests to images: data, pure programs, and what runs them."""
