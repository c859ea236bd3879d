"""How fast implementations are, beside each other, beside what the machine allows and beside their invariant selves."""
