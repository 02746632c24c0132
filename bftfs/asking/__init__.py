"""How clients and nodes ask a set of nodes: whom, in which order, and how many."""
