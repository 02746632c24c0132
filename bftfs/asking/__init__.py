"""How clients and nodes ask a set of nodes: which, in which order, and how many."""
