"""Class activation maps: `Sal[i,j] = Σ_{k,l} w_{k,l} Ã^{k,l}_{ij}`, one weight function per method."""
