"""Operations of the cells that PyTorch has slower, or not at all."""
