"""The nets of the paper: `resnet.build` makes them, `complexity.count` counts their parameters and multiply-adds."""
