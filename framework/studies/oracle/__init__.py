"""The oracle study: what each unit is worth exactly, and how well the criterions tell it."""
