"""Operations that treat each token by itself: their tensors, their references, and how they are run."""
