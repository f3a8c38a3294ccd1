"""What a pre-training is made of: kinds of diffusion, networks, augmentation."""
