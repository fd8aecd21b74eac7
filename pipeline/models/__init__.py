"""The nets of the paper: `architecture.KINDS` lists their kinds, `resnet.build` makes one, `complexity.count` sizes it up."""
