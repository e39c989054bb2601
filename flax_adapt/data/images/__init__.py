"""Images: decoding, augmentation, folders, TFDS sets."""
