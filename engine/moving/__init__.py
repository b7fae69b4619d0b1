"""Moving house: everything that one store holds is brought to another. The server needs none of it."""
