"""Which targets make up which chains: designs of chain tables, plans of moves, chain files. Pure, but for the solver."""
