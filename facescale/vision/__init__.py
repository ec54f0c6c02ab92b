"""Detection, landmarks, alignment and embedding: batches of pixels in, boxes, points and descriptors out."""
